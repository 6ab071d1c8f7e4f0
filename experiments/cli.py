"""What the commands share: a quick first look at the arguments, and errors without a traceback."""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from experiments import configs

if TYPE_CHECKING:
    from experiments.config import Config

T = TypeVar("T")


def peek(parser: argparse.ArgumentParser, argv: Sequence[str], needed: str) -> argparse.Namespace:
    """Reads what decides which flags there are; answers `--list` and a bare `--help` at once.

    Args:
        parser: knows the command's own arguments, and nothing of a configuration's.
        argv: the whole command line.
        needed: the argument without which nothing can be done.

    Returns:
        The command's own arguments, unchecked but for `needed`; what was put in place of parts of
        the configuration is its attribute `parts`.
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


def load(name: str, parts: Sequence[str]) -> "Config":
    """The configuration of that name, with what `--with` puts in place of its parts.

    Raises:
        ValueError: if there is no such configuration, part, factory or option.
    """
    config = configs.load(name)

    from experiments.components import read_component

    return dataclasses.replace(config, **dict(map(read_component, parts)))


def parse(kind: type[T], argv: Sequence[str], prog: str) -> T:
    """Reads the whole command line into `kind`, a dataclass."""
    import tyro

    return tyro.cli(kind, args=argv, prog=prog, use_underscores=True)


def start(devices: int) -> None:
    """Starts JAX: joins the other processes if there are any, else forces host devices on a CPU."""
    import jax

    from jaxdist.training import multihost
    from jaxdist.workers import force_host_devices

    multihost.initialize()
    if not jax.distributed.is_initialized():
        force_host_devices(devices)


@contextlib.contextmanager
def clean_errors(traceback: bool) -> Iterator[None]:
    """Ends the program with one line: with status 2 where an argument turns out to be wrong.

    A run that was told to stop, and is saved, ends with status 0; one that lost a process, or could
    not write a file, with 1.
    """
    try:
        yield
    except ValueError as error:
        if traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted: the same command resumes from the last checkpoint", file=sys.stderr)
        if (multihost := sys.modules.get("jaxdist.training.multihost")) is not None:
            multihost.leave(130)  # the others are not waited for
        raise SystemExit(130) from None
    except Exception as error:
        from jaxdist.training import faults, multihost, saving  # JAX, once it is there anyway

        failed = isinstance(error, faults.LostProcessError | OSError)
        if traceback or not (failed or isinstance(error, faults.PreemptedError)):
            raise
        print(f"{'error: ' * failed}{error}", file=sys.stderr, flush=True)
        if failed and not isinstance(error, saving.SaveError):  # in which all processes fail
            multihost.leave(1)
        raise SystemExit(int(failed)) from None
