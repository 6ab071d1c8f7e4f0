"""Trains several configurations with several seeds each, and compares them.

`python -m experiments.sweep --configs digits --rule local_sgd mgrawa --seeds 0 1 2 --workdir DIR`
trains into DIR/<configuration>/seed_<seed>, in one process, and leaves a plot, a table and a JSON
file in DIR. The same command again goes on where it stopped, and trains nothing twice. With several
values for a flag, `--rule.period 4 8`, it is a grid: DIR/<configuration>,rule.period=4/seed_<seed>
and so on; several rules, `--rule mgrawa lgrawa`, are DIR/<configuration>,rule=mgrawa/seed_<seed>.
What is wrong with any of the runs is reported before the first is trained.
"""

import argparse
import bisect
import dataclasses
import fnmatch
import functools
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from experiments import cli, configs, flags

if TYPE_CHECKING:
    from jaxdist.config import Config

PROG = "python -m experiments.sweep"


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, trains what is not trained yet, and compares."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = cli.Parser(
        prog=PROG,
        usage=f"{PROG} --configs NAME NAME --seeds 0 1 2 --workdir DIR [--epochs 5 ...]",
        description="Trains every configuration with every seed, and compares them. Several values "
        "of a flag, as --rule.period 4 8 16, are as many configurations; of several flags, all "
        "combinations.",
        epilog="Every value of a configuration is a flag, and applies to all of them: "
        "--configs NAME --help shows them.",
        add_help=False,
    )
    parser.add_argument("--configs", nargs="+", help="names, patterns ('digits_*') or files")
    parser.add_argument("--seeds", help="the seeds", metavar="SEED")
    parser.add_argument(
        "--workdir", type=cli.path, help="folder for the runs and for the comparison"
    )
    parser.add_argument(
        "--bytes_budget", help="choose each rule's period to send no more than this"
    )
    asked = cli.peek(parser, argv, "configs")
    with cli.clean_errors(asked.traceback):
        cli.run_imports(asked.imports)
        _sweep(argv, asked)


def _expand(patterns: Sequence[str]) -> list[str]:
    """The names that the patterns match, in order, each once.

    Raises:
        ValueError: for a pattern that matches none.
    """
    if twice := [pattern for pattern in dict.fromkeys(patterns) if patterns.count(pattern) > 1]:
        raise ValueError(f"configs: {twice[0]!r} is given {patterns.count(twice[0])} times")
    names = configs.available()
    matches = [fnmatch.filter(names, pattern) or [pattern] for pattern in patterns]
    for (first, *_), pattern in zip(matches, patterns, strict=True):
        if first == pattern and set("*?[") & {*pattern} and not Path(pattern).exists():
            raise ValueError(f"configs: {pattern!r} matches no configuration; --list shows them")
    return list(dict.fromkeys(name for match in matches for name in match))


def _rules(rules: Sequence[str]) -> Sequence[str | None]:
    """The rules, each once; [None] where there are none: each configuration keeps its own.

    Raises:
        ValueError: if one is given twice.
    """
    shown = [flags.in_folder(rule) for rule in rules]
    if twice := [rule for rule in shown if shown.count(rule) > 1]:
        raise ValueError(f"--rule: {twice[0]!r} is given {shown.count(twice[0])} times")
    return rules or [None]


class Job(NamedTuple):
    """A configuration of a sweep: its command line's values, and the sources of these."""

    arguments: Any
    given: Sequence[str]  # the flags' names


def _sweep(argv: Sequence[str], asked: argparse.Namespace) -> None:
    jobs: dict[str, Job] = {}
    for config, rule in itertools.product(_expand(asked.configs), _rules(asked.rules)):
        for name, job in _jobs(argv, config, asked.parts, rule):
            if name in jobs:
                raise ValueError(
                    f"configs: two are named {name!r}, and would train into one folder; rename one"
                )
            jobs[name] = job
    seeds, progress, target = next(
        (given.seeds, given.progress, given.target) for given, _ in jobs.values()
    )
    cli.check_seeds(seeds)
    cli.start(max(job.arguments.run.devices for job in jobs.values()))

    from experiments import comparison
    from jaxdist.config import paced
    from jaxdist.training import multihost, train

    todo, timelines = _checked(jobs, seeds, asked.workdir), {}
    for (name, seed), config in todo.items():
        if multihost.is_main():
            print(f"{name}, seed {seed}", flush=True)
        run, timeline = paced(config)
        if timeline is not None:
            timelines.setdefault(name, timeline)
        train(run, _folder(asked.workdir, name, seed), progress=progress)
    if multihost.is_main():
        comparison.write(asked.workdir, list(jobs), seeds, target)
        if timelines:
            comparison.plot_timelines(timelines, asked.workdir / "timelines.png")


def _jobs(
    argv: Sequence[str], config: str, parts: Sequence[str], rule: str | None
) -> Iterator[tuple[str, Job]]:
    """What one configuration makes, by the name of its folder: one job, or those of a grid."""
    default = cli.load(config, parts, rule)
    name = Path(config).stem + (f",rule={flags.in_folder(rule)}" if rule else "")
    kind = _arguments(default)
    given = cli.check_flags(argv, kind, default, config)
    names = [flags.positive(each.name) for each in given]
    if "seed" in names:
        raise ValueError("--seed: a sweep trains with each of --seeds; write --seeds SEED SEED ...")
    if {"bytes_budget", "rule.period"} <= {*names}:
        raise ValueError("--rule.period would change nothing: --bytes_budget chooses the period")
    of_config = flags.counts(type(default), default)
    flags.check_single(given, {n: c for n, c in flags.counts(kind).items() if n not in of_config})
    for values, words in flags.grid(given, of_config):
        job = Job(cli.parse(kind, words, PROG), names)
        yield ",".join([name, values]) if values else name, job


def _checked(
    jobs: Mapping[str, Job], seeds: Sequence[int], workdir: Path
) -> "dict[tuple[str, int], Config]":
    """The configuration of each run, by name and seed, once all are known to be trainable.

    Raises:
        ValueError: if data are missing, a rule does not fit, or a folder holds another run: what
            training would find, of all runs before the first of them is trained.
    """
    import jax

    from experiments import ignored
    from jaxdist.config import paced
    from jaxdist.training import record, targets
    from jaxdist.training.advance import make_advance
    from jaxdist.training.checkpoint import steps_in
    from jaxdist.training.due import traffic_of
    from jaxdist.training.evaluate import evaluated
    from jaxdist.training.state import initial_model

    todo, headline = {}, None
    for name, (arguments, given) in jobs.items():
        for seed in seeds:
            try:
                config = dataclasses.replace(arguments.run, seed=seed)
                if arguments.bytes_budget is not None:
                    config = within(config, arguments.bytes_budget)
                run, _ = paced(config)
                folder = _folder(workdir, name, seed)
                record.check_free(folder, run)
                if run.start is not None and not steps_in(folder / record.CHECKPOINTS):
                    run.start.given(jax.eval_shape(functools.partial(initial_model, run)))
                todo[name, seed] = config
                if seed != seeds[0]:  # what follows is alike with all
                    continue
                ignored.check(config, run, given)
                make_advance(run, traffic_of(run))
                first = headline or run.task.headline
                if (headline := run.task.headline) != first:
                    raise ValueError(
                        f"it is judged by {headline.title}, those before it by {first.title}: give "
                        f"configurations of one task"
                    )
                if arguments.target is not None:
                    target = targets.read(arguments.target, headline)
                    if target.name != headline.test:
                        targets.check(target, evaluated(run))
                if run.until is not None:
                    targets.check(run.until, evaluated(run), argument="until")
            except ValueError as error:
                raise ValueError(f"{name}, seed {seed}: {error}; nothing was trained") from error
    return todo


def _folder(workdir: Path, name: str, seed: int) -> Path:
    return workdir / name / f"seed_{seed}"


def _arguments(default: "Config") -> type:
    import tyro

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        """Trains every configuration with every seed, and compares them.

        A flag of one value that is given several, as --rule.period 4 8 16, makes a configuration of
        each; several such flags, of each combination. Its folder and its row name the values.
        """

        configs: tuple[str, ...]
        """Names of configurations, patterns such as 'digits_*', or paths of .py files."""
        workdir: Path
        """Folder for the runs and for the comparison."""
        run: Annotated[type(default), tyro.conf.arg(name="")] = default
        parts: Annotated[tuple[str, ...], tyro.conf.arg(name="with")] = ()
        """Other factories for parts of all configurations, as 'shards=dirichlet(alpha=0.1)'."""
        imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
        """Python files of your own that register parts."""
        seeds: tuple[int, ...] = (0,)
        """The seeds, in place of the configuration's own."""
        rules: Annotated[tuple[str, ...], tyro.conf.arg(name="rule")] = ()
        """Rules in place of a configuration's own, as mgrawa or 'easgd(period=8)': a configuration
        of each."""
        bytes_budget: float | None = None
        """Give each rule the shortest period with which a worker sends at most so many bytes."""
        target: str | None = None
        """The table has when each run first reached it: a number, of what the task is judged by,
        as a test accuracy; or NAME=VALUE with any name of the runs' evaluations, as
        test_loss=0.5, or 'NAME>=VALUE', 'NAME<=VALUE'."""
        progress: bool = True
        """Show a progress bar for each run."""
        traceback: bool = False
        """Show where an error comes from."""

    return Arguments


def within(config: "Config", budget: float) -> "Config":
    """The configuration with the shortest period of its rule that keeps to a budget.

    Args:
        config: a configuration whose rule has a period.
        budget: bytes that each worker may send in the whole run.

    Raises:
        ValueError: if the rule has no period, or sends more with any period.
    """
    import jax
    import optax

    from jaxdist import rules
    from jaxdist.config import build
    from jaxdist.traffic import Traffic

    run, rule = build(config), config.rule
    if "period" not in rule.options():
        raise ValueError(
            f"bytes_budget={budget:g}: allowed are rules with a period to choose; {run.rule!r} has "
            f"no period"
        )
    params, _ = jax.eval_shape(run.task.init, jax.random.key(0))
    drop = config.drop(run.sampler.steps_per_epoch, total_steps=run.steps, axis=run.workers.axis)
    optimizer = optax.chain(config.optimizer(0.0), drop)

    def sent(period: int) -> int:
        options = rule.options() | {"period": period}
        tx = rules.compose(optimizer, run.rule, run.workers.axis, **options)
        return Traffic.of(tx, params, run.workers.num).bytes_sent(0, run.steps)

    periods = range(1, run.steps + 1)
    index = bisect.bisect_left(periods, True, key=lambda period: sent(period) <= budget)
    if index == len(periods):
        least = sent(periods[-1])
        raise ValueError(
            f"bytes_budget={budget:g}: allowed are bytes from {least:,}; the rule {run.rule!r} "
            f"sends at least as many"
        )
    return dataclasses.replace(config, rule=dataclasses.replace(rule, period=periods[index]))


if __name__ == "__main__":
    main()
