"""What a configuration will do on accelerators that are not there, before they are rented.

`python -m experiments.preflight --config digits --rule mgrawa --on v5e:4x4` compiles the steps, the
syncs and the evaluation for that machine with its own compiler, and says what they need and send,
and how long they take at best. Several rules or machines make one table of them. Nothing is trained
and nothing written.
"""

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from experiments import cli, flags
from experiments.preflight_tables import show, show_all

if TYPE_CHECKING:
    from jaxdist.config import Config

PROG = "python -m experiments.preflight"


@dataclasses.dataclass(frozen=True)
class Assumed:
    """Another chip than the one that the estimates assume; the compiler's is the target's."""

    memory: float | None = None
    """Bytes."""
    flops: float | None = None
    """Floating-point operations a second of the matrix units."""
    bandwidth: float | None = None
    """Bytes a second between the chip and its memory."""
    inside: float | None = None
    """Bytes a second that a chip sends to chips of its slice or host."""
    between: float | None = None
    """Bytes a second that a chip sends to other slices or hosts."""
    latency: float | None = None
    """Seconds of a message inside a slice or host."""
    latency_between: float | None = None
    """Seconds of a message between them."""


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, compiles, and prints what was found; the last line is JSON."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = cli.Parser(
        prog=PROG,
        usage=f"{PROG} --config NAME --on v5e:4x4 [v5e:16x16*2 h100:2x8 ...] [--rule easgd ...]",
        description="Compiles a configuration for accelerators that are not there.",
        epilog="Every value of a configuration is a flag: --config NAME --help shows them all.",
        add_help=False,
    )
    parser.add_argument("--config", help="name or file of a configuration")
    parser.add_argument("--on", nargs="+", help="TPU slices or hosts of GPUs, as v5e:4x4, h100:2x8")
    given = cli.peek(parser, argv, "config")
    with cli.clean_errors(given.traceback):
        if not given.on:
            raise ValueError("--on: allowed are machines, as v5e:4x4 or h100:2x8; none is given")
        cli.run_imports(given.imports)
        _preflight(argv, given)


def _preflight(argv: Sequence[str], given: argparse.Namespace) -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")  # the machines are not there

    from jaxdist.preflight import preflight, target

    read = lambda rule: _arguments(argv, cli.load(given.config, given.parts, rule), given.config)
    asked = {rule: read(rule) for rule in given.rules or [None]}
    machines, found = [target(name) for name in given.on], []
    for (rule, (arguments, names)), machine in itertools.product(asked.items(), machines):
        machine = dataclasses.replace(machine, chip=_chip(machine.chip, arguments.chip))
        config = _placed(arguments.run, len(machine.devices), "workers" in names)
        name = given.config + (f", {rule}" if rule else "")
        report = preflight(_build(config, machine.devices), machine)
        show(name, report)
        found.append((name, report))
    if len(found) > 1:
        show_all(found)
    print(json.dumps([{"name": name} | report.plain() for name, report in found]))


def _build(config: "Config", devices: Sequence[Any]) -> Any:
    from jaxdist.config import build

    return build(config, devices)


def _placed(config: "Config", chips: int, asked: bool) -> "Config":
    """The configuration with a worker on each of the machine's parts, if no number was asked for.

    Raises:
        ValueError: if the chips do not split into workers.
    """
    inside = config.mesh.fsdp
    if chips % inside:
        raise ValueError(f"mesh.fsdp={inside} on {chips} chips: allowed is what divides them")
    if asked and config.workers:
        return config
    return dataclasses.replace(config, workers=chips // inside)


def _chip(chip: Any, assumed: Assumed) -> Any:
    from jaxdist.checks import check_above

    changes = {k: v for k, v in dataclasses.asdict(assumed).items() if v is not None}
    for name, value in changes.items():
        check_above(f"chip.{name}", value)
    return dataclasses.replace(chip, **changes)


def _arguments(argv: Sequence[str], default: "Config", config: str) -> tuple[Any, list[str]]:
    import tyro

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        """Compiles a configuration for accelerators that are not there. Nothing is trained."""

        config: str
        """Name of a configuration, or the path of one: a .py file, or the config.json of a run."""
        on: tuple[str, ...]
        """TPU slices as v5e:4x4 or v5e:16x16*2, hosts of GPUs as h100:2x8."""
        run: Annotated[type(default), tyro.conf.arg(name="")] = default
        parts: Annotated[tuple[str, ...], tyro.conf.arg(name="with")] = ()
        """Other factories for parts of the configuration, as 'shards=dirichlet(alpha=0.1)'."""
        rules: Annotated[tuple[str, ...], tyro.conf.arg(name="rule")] = ()
        """Rules in place of the configuration's own, as easgd or 'easgd(period=8)'."""
        imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
        """Python files of your own that register parts."""
        chip: Assumed = Assumed()
        """What the estimates assume of a chip."""
        traceback: bool = False
        """Show where an error comes from."""

    asked = cli.check_flags(argv, Arguments, default, config)
    flags.check_single(asked, flags.counts(Arguments))
    names = [flags.positive(each.name) for each in asked]
    return cli.parse(Arguments, argv, PROG), names


if __name__ == "__main__":
    main()
