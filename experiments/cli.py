"""What the commands share: a quick first look at the arguments, and errors without a traceback."""

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from experiments import configs, flags

if TYPE_CHECKING:
    from jaxdist.config import Config

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """A parser that knows no abbreviations, and refuses a flag that is given twice."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args=None, namespace=None):
        """As argparse's own, which `parse_args` calls too."""
        args = sys.argv[1:] if args is None else list(args)
        first = next((i for i, word in enumerate(args) if word.startswith("-")), len(args))
        positional = any(not action.option_strings for action in self._actions)
        try:
            flags.split(args[first:] if positional else args)
        except ValueError as error:
            self.error(str(error))
        return super().parse_known_args(args, namespace)


def path(text: str) -> Path:
    """A local path as an argument of a command: `type=path`."""
    from jaxdist.checks import local_path

    try:
        return local_path("it", text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def peek(parser: argparse.ArgumentParser, argv: Sequence[str], needed: str) -> argparse.Namespace:
    """Reads what decides which flags there are; answers `--list` and a bare `--help` at once.

    Args:
        parser: knows the command's own arguments, and nothing of a configuration's.
        argv: the whole command line.
        needed: the argument without which nothing can be done.

    Returns:
        The command's own arguments, unchecked but for `needed` and paths; what was put in place of
        the rule and of other parts of the configuration are its attributes `rules` and `parts`, the
        user's own files `imports`.
    """
    parser.add_argument(
        "--with",
        dest="parts",
        nargs="+",
        action="extend",
        default=[],
        metavar="PART=FACTORY",
        help="put another factory in a part: 'shards=dirichlet(alpha=0.1)', 'rule=dpsgd'",
    )
    parser.add_argument(
        "--rule",
        dest="rules",
        nargs="+",
        action="extend",
        default=[],
        metavar="RULE",
        help="put another rule in its place, with its hyper-parameters for this configuration",
    )
    add_import(parser)
    parser.add_argument("--list", action="store_true", help="show the configurations and exit")
    parser.add_argument("-h", "--help", action="store_true", help="show this, or all the flags")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    known, _ = parser.parse_known_args(argv)
    if known.list:
        listed = configs.available()
        width = max(map(len, listed))
        print("\n".join(f"{name:{width}}  {line}" for name, line in listed.items()))
        parser.exit()
    if not getattr(known, needed):
        if known.help:
            parser.print_help()
            parser.exit()
        parser.error(f"--{needed} is needed; --list shows the configurations")
    return known


def add_import(parser: argparse.ArgumentParser) -> None:
    """Adds `--import FILE`, which is read with `run_imports`."""
    parser.add_argument(
        "--import",
        dest="imports",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="run a Python file that registers parts of your own (jaxdist.config.register)",
    )


def run_imports(files: Sequence[str]) -> None:
    """Runs the user's own files, which register factories.

    Raises:
        ValueError: if one is no Python file, or fails; it names the line.
    """
    from jaxdist.config import own  # JAX, which --list does without

    for file in files:
        own.run(file)


def load(name: str, parts: Sequence[str], rule: str | None = None) -> "Config":
    """The configuration of that name, with what `--with` and `--rule` put in place of its parts.

    Raises:
        ValueError: if there is no such configuration, part, factory or option, or a part is given
            twice.
    """
    config = configs.load(name, rule)

    from jaxdist.config import read_component

    read = [read_component(part) for part in parts]
    for slot, _ in read:
        if (times := [each for each, _ in read].count(slot)) > 1:
            raise ValueError(f"--with {slot}=... is given {times} times; give it once")
        if slot == "rule" and rule is not None:
            raise ValueError("--rule and --with rule=... are given: allowed is one of them")
    return dataclasses.replace(config, **dict(read))


def check_flags(argv: Sequence[str], kind: type, config: "Config", name: str) -> list[flags.Given]:
    """The flags that were given, each of which the command or its configuration has.

    Args:
        argv: the command line.
        kind: the dataclass of all flags.
        config: the configuration.
        name: its name, for the errors.

    Raises:
        ValueError: for a flag that there is not, with the nearest one.
    """
    from jaxdist.config import SLOTS

    asked = flags.split(argv)
    parts = {slot: getattr(config, slot).factory for slot in SLOTS}
    flags.check(asked, flags.counts(kind), name, parts)
    return asked


def parse(kind: type[T], argv: Sequence[str], prog: str) -> T:
    """Reads the whole command line into `kind`, a dataclass."""
    import tyro

    return tyro.cli(kind, args=argv, prog=prog, use_underscores=True)


def check_seeds(seeds: Sequence[int]) -> None:
    """Checks the seeds of several runs.

    Raises:
        ValueError: if there is none, one comes twice, or is out of range.
    """
    from jaxdist.checks import check_integer

    for seed in seeds:
        check_integer("--seeds", seed, 0)
    if not seeds or len({*seeds}) < len(seeds):
        raise ValueError(f"--seeds={list(seeds)}: allowed are one or more, each given once")


def start(devices: int) -> None:
    """Starts JAX: joins the other processes if there are any, else forces host devices on a CPU.

    Raises:
        ValueError: if the environment asks for what there is not, as a platform without devices.
    """
    import jax

    from jaxdist.training import multihost
    from jaxdist.workers import force_host_devices

    multihost.initialize()
    if not jax.distributed.is_initialized():
        force_host_devices(devices)
    check_devices()


def check_devices() -> None:
    """Starts JAX's backend.

    Raises:
        ValueError: if it has none.
    """
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where jaxlib lacks the platform
        asked = os.environ.get("JAX_PLATFORMS")
        why = str(error).partition("\n")[0] or "this machine, or this jaxlib, has none"
        raise ValueError(f"JAX finds no device (JAX_PLATFORMS={asked!r}): {why}") from None


@contextlib.contextmanager
def clean_errors(traceback: bool) -> Iterator[None]:
    """Ends the program with one line: with status 2 where an argument turns out to be wrong.

    An error that comes through a file of the user's own names its line there. A run that was
    stopped and is saved ends with status 0; one that lost a process, or could not write a file,
    with 1.
    """
    try:
        yield
    except (ValueError, OverflowError) as error:
        if traceback:
            raise
        from jaxdist.config import own

        print(f"error: {own.said(error) or error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted: the same command resumes from the last checkpoint", file=sys.stderr)
        if (multihost := sys.modules.get("jaxdist.training.multihost")) is not None:
            multihost.leave(130)  # the others are not waited for
        raise SystemExit(130) from None
    except Exception as error:
        from jaxdist.config import own
        from jaxdist.training import faults, multihost, saving  # JAX, once it is there anyway

        failed = isinstance(error, faults.LostProcessError | OSError)
        if not (traceback or failed or isinstance(error, faults.PreemptedError)):
            if (message := own.said(error)) is None:
                raise
            print(f"error: {message}", file=sys.stderr)
            raise SystemExit(2) from None
        if traceback:
            raise
        print(f"{'error: ' * failed}{own.said(error) or error}", file=sys.stderr, flush=True)
        if failed and not isinstance(error, saving.SaveError):  # in which all processes fail
            multihost.leave(1)
        raise SystemExit(int(failed)) from None
