"""Trains several configurations with several seeds each, and compares them.

`python -m experiments.sweep --configs digits_local_sgd digits_mgrawa --seeds 0 1 2 --workdir DIR`
trains into DIR/<configuration>/seed_<seed>, in one process, and leaves a plot, a table and a JSON
file in DIR. The same command again goes on where it stopped, and trains nothing twice.
"""

import argparse
import bisect
import dataclasses
import fnmatch
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from experiments import cli, configs

if TYPE_CHECKING:
    from experiments.config import Config

PROG = "python -m experiments.sweep"


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, trains what is not trained yet, and compares."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog=PROG,
        usage=f"{PROG} --configs NAME NAME --seeds 0 1 2 --workdir DIR [--epochs 5 ...]",
        description="Trains every configuration with every seed, and compares them.",
        epilog="Every value of a configuration is a flag, and applies to all of them: "
        "--configs NAME --help shows them.",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--configs", nargs="+", help="names, patterns ('digits_*') or files")
    parser.add_argument("--seeds", help="the seeds", metavar="SEED")
    parser.add_argument("--workdir", help="folder for the runs and for the comparison")
    parser.add_argument(
        "--bytes_budget", help="choose each rule's period to send no more than this"
    )
    given = cli.peek(parser, argv, "configs")
    with cli.clean_errors(given.traceback):
        _sweep(argv, _expand(given.configs), given.parts)


def _expand(patterns: Sequence[str]) -> list[str]:
    """The names that the patterns match, in order, each once."""
    names = configs.available()
    matches = [fnmatch.filter(names, pattern) or [pattern] for pattern in patterns]
    return list(dict.fromkeys(name for match in matches for name in match))


def _sweep(argv: Sequence[str], names: Sequence[str], parts: Sequence[str]) -> None:
    parsed = {Path(name).stem: _parse(argv, cli.load(name, parts)) for name in names}
    cli.start(max(arguments.run.devices for arguments in parsed.values()))

    from experiments import comparison
    from experiments.config import paced
    from jaxdist.training import multihost, train

    timelines = {}
    for name, arguments in parsed.items():
        for seed in arguments.seeds:
            config = dataclasses.replace(arguments.run, seed=seed)
            if arguments.bytes_budget is not None:
                config = within(config, arguments.bytes_budget)
            if multihost.is_main():
                print(f"{name}, seed {seed}", flush=True)
            folder = arguments.workdir / name / f"seed_{seed}"
            run, timeline = paced(config)
            if timeline is not None:
                timelines.setdefault(name, timeline)
            train(run, folder, progress=arguments.progress)
    if multihost.is_main():
        comparison.write(arguments.workdir, list(parsed), arguments.seeds, arguments.target)
        if timelines:
            comparison.plot_timelines(timelines, arguments.workdir / "timelines.png")


def _parse(argv: Sequence[str], default: "Config"):
    import tyro

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        """Trains every configuration with every seed, and compares them."""

        configs: tuple[str, ...]
        """Names of configurations, patterns such as 'digits_*', or paths of .py files."""
        workdir: Path
        """Folder for the runs and for the comparison."""
        run: Annotated[type(default), tyro.conf.arg(name="")] = default
        parts: Annotated[tuple[str, ...], tyro.conf.arg(name="with")] = ()
        """Other factories for parts of all configurations, as 'shards=dirichlet(alpha=0.1)'."""
        seeds: tuple[int, ...] = (0,)
        """The seeds, in place of the configuration's own."""
        bytes_budget: float | None = None
        """Give each rule the shortest period with which a worker sends at most so many bytes."""
        target: float | None = None
        """A test accuracy: the table says when each run first reached it."""
        progress: bool = True
        """Show a progress bar for each run."""
        traceback: bool = False
        """Show where an error comes from."""

        def __post_init__(self):
            if self.target is not None and not 0 < self.target <= 1:
                raise ValueError(f"target={self.target}: allowed is an accuracy in (0, 1]")

    return cli.parse(Arguments, argv, PROG)


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

    from experiments.config import build
    from jaxdist import rules
    from jaxdist.traffic import Traffic

    run, rule = build(config), config.rule
    if "period" not in rule.options():
        raise ValueError(f"bytes_budget={budget:g}: the rule {run.rule!r} has no period to choose")
    params, _ = jax.eval_shape(run.model.init, jax.random.key(0))
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
            f"bytes_budget={budget:g}: the rule {run.rule!r} sends at least {least:,} bytes"
        )
    return dataclasses.replace(config, rule=dataclasses.replace(rule, period=periods[index]))


if __name__ == "__main__":
    main()
