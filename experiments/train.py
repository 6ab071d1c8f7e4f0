"""Trains one configuration: `python -m experiments.train --config digits_mgrawa --workdir DIR`.

`--list` shows the configurations; `--config NAME --help` shows all that can be changed in one.
"""

import argparse
import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from experiments import cli, flags

if TYPE_CHECKING:
    from jaxdist.config import Config
    from jaxdist.tasks import Headline

PROG = "python -m experiments.train"


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, trains, and prints how it went."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = cli.Parser(
        prog=PROG,
        usage=f"{PROG} --config NAME --workdir DIR [--rule easgd --rule.period 16 --seed 1 ...]",
        description="Trains one configuration. The same command again resumes where it stopped.",
        epilog="Every value of a configuration is a flag: --config NAME --help shows them all.",
        add_help=False,
    )
    parser.add_argument("--config", help="name or file of a configuration")
    parser.add_argument(
        "--workdir", type=cli.path, help="folder for metrics, plots and checkpoints"
    )
    given = cli.peek(parser, argv, "config")
    with cli.clean_errors(given.traceback):
        cli.run_imports(given.imports)
        if len(given.rules) > 1:
            raise ValueError(f"--rule {' '.join(given.rules)}: allowed is one; a sweep takes more")
        _train(argv, given, cli.load(given.config, given.parts, *given.rules))


def _train(argv: Sequence[str], given: argparse.Namespace, default: "Config") -> None:
    import tyro

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        """Trains one configuration. The same command again resumes where it stopped."""

        config: str
        """Name of a configuration, or the path of one: a .py file, or the config.json of a run."""
        workdir: Path
        """Folder for metrics, plots and checkpoints."""
        run: Annotated[type(default), tyro.conf.arg(name="")] = default
        parts: Annotated[tuple[str, ...], tyro.conf.arg(name="with")] = ()
        """Other factories for parts of the configuration, as 'shards=dirichlet(alpha=0.1)'."""
        rules: Annotated[tuple[str, ...], tyro.conf.arg(name="rule")] = ()
        """The rule in place of the configuration's own, as easgd or 'easgd(period=8)', with its
        hyper-parameters for this configuration; --rule.period and so on change them."""
        imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
        """Python files of your own that register parts."""
        progress: bool = True
        """Show a progress bar."""
        profile: bool = False
        """Trace some of the first steps, into WORKDIR/profile, for XProf and Perfetto."""
        traceback: bool = False
        """Show where an error comes from."""

    asked = cli.check_flags(argv, Arguments, default, given.config)
    flags.check_single(asked, flags.counts(Arguments))
    arguments = cli.parse(Arguments, argv, PROG)
    cli.start(arguments.run.devices)

    from experiments import ignored
    from jaxdist.config import build
    from jaxdist.training import multihost, record, train

    run = build(arguments.run)
    ignored.check(arguments.run, run, [flags.positive(each.name) for each in asked])
    finished = record.finished(given.workdir, run) is not None
    shown = {"progress": arguments.progress, "profile": arguments.profile}
    summary = train(run, given.workdir, **shown)
    if multihost.is_main():
        if finished:
            print("this run was finished before: nothing was trained, traced or written now")
        report(summary, given.workdir, run.task.headline)


def report(summary: Mapping[str, Any], workdir: Path, headline: "Headline") -> None:
    """Prints how a run ended, and where its files are."""
    from rich.console import Console
    from rich.text import Text

    summary = {name: math.nan if value is None else value for name, value in summary.items()}
    workers = [math.nan if value is None else value for value in summary[headline.workers]]
    rows = {
        headline.title: f"{summary[headline.test]:.4f}  at the mean of the workers",
        "": f"{min(workers):.4f} to {max(workers):.4f}  of each worker alone",
        "test loss": f"{summary['test_loss']:.4f}",
        "consensus distance": f"{summary['consensus_distance']:.4g}",
        "bytes sent": f"{summary['bytes_sent_per_worker']:,}  by a worker, on average",
        "time": f"{summary['seconds']:.1f} s for {summary['steps']} steps, with compiling",
        "plots": str(workdir.absolute() / "plots"),
    }
    console = Console(soft_wrap=True)
    console.print()
    for name, value in rows.items():
        console.print(Text.assemble((f"{name:20}", "bold"), value))


if __name__ == "__main__":
    main()
