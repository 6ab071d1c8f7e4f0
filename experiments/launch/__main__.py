"""Starts a command in several processes of this machine that join into one JAX program.

`python -m experiments.launch --processes 4 -- python -m experiments.train --config digits_mgrawa
--workdir runs/a` prints what they print, passes signals on, and leaves none of them behind. With
`--elastic` it goes on without those that are lost, and with those that join.
"""

import argparse
import os
import re
import shutil
import socket
import sys
from collections.abc import Sequence

from experiments.arguments import NATURAL, POSITIVE, at_least
from experiments.cli import Parser
from experiments.flags import split

PROG = "python -m experiments.launch"
_TIMEOUT = "--xla_cpu_collective_timeout_seconds"
_LONGEST_PAUSE = 60
_REFUSED = 2  # how a command ends whose arguments are wrong


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, runs the processes, and ends with their status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = _parser()
    arguments, command = parser.parse_args(argv[:cut]), argv[cut + 1 :]
    if not command:
        parser.error("a command is needed: [options] -- COMMAND ...")
    if arguments.elastic and arguments.restarts:
        parser.error("--elastic starts again by itself; leave out --restarts")
    if arguments.elastic:
        _check_elastic(parser, command)
    elif arguments.min_processes is not None:
        parser.error("--min-processes would change nothing: it is for --elastic")
    arguments.min_processes = arguments.min_processes or 1
    if arguments.min_processes > arguments.processes:
        parser.error(f"--min-processes {arguments.min_processes}: allowed are up to --processes")
    if shutil.which(command[0]) is None:
        parser.error(f"{command[0]!r}: no such command")
    try:
        free_port(arguments.address)
    except OSError as error:
        reason = error.strerror
        parser.error(f"--address {arguments.address}: allowed are this machine's own: {reason}")
    raise SystemExit((generations if arguments.elastic else launch)(arguments, command))


def _check_elastic(parser: argparse.ArgumentParser, command: Sequence[str]) -> None:
    """Refuses a training that could not go on with another number of processes."""
    if "experiments.train" in command:
        given = {
            flag.name: flag.values
            for flag in split(command[command.index("experiments.train") + 1 :])
        }
        if given.get("workers") != ["0"] or given.get("base_workers", ["0"]) == ["0"]:
            parser.error(
                "--elastic: the command needs --workers 0, a worker for each device there is, and "
                "--base_workers N, without which a run keeps its number of workers"
            )


def launch(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Runs the command until it succeeds or was restarted often enough.

    Returns:
        The status to end with.
    """
    from jaxdist.launch.processes import Launcher

    with Launcher(command, arguments.grace) as launcher:
        for restart in range(arguments.restarts + 1):
            status = launcher.run(environments(arguments, arguments.processes))
            if status == 0 or launcher.stopped or restart == arguments.restarts:
                return status
            seconds = min(2**restart, _LONGEST_PAUSE)
            launcher.say(f"restart {restart + 1} of {arguments.restarts} in {seconds} s")
            if not launcher.pause(seconds):
                return 128 + launcher.stopped


def generations(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Runs the command in as many processes as there are, from one change of their number on.

    Each generation has new processes, which go on from the last checkpoint: fewer after some were
    lost, more after `JOIN`. A command that refuses its arguments (status 2), or fails in all
    processes alike, is not run again.

    Returns:
        The status to end with.
    """
    from jaxdist.launch.processes import JOIN, Launcher

    num = arguments.processes
    with Launcher(command, arguments.grace, elastic=True) as launcher:
        launcher.say(f"kill -{JOIN.name[3:]} {os.getpid()} adds a process")
        while True:
            status = launcher.run(environments(arguments, num))
            done = not (launcher.lost or launcher.joining)
            if done or launcher.stopped or status == _REFUSED:
                return status
            num += launcher.joining - launcher.lost
            if num < arguments.min_processes:
                launcher.say(f"{num} left, fewer than --min-processes {arguments.min_processes}")
                return status
            launcher.say(f"goes on with {num} process{'es' * (num > 1)} from the last checkpoint")


def environments(arguments: argparse.Namespace, num: int) -> list[dict[str, str]]:
    """The environments of `num` processes, of which `jaxdist.training.multihost` reads how to join.

    Process 0 listens on the given address alone; JAX's own default is every address.
    """
    port = free_port(arguments.address)
    host = f"[{arguments.address}]" if ":" in arguments.address else arguments.address
    flags = os.environ.get("XLA_FLAGS", "")
    if not re.search(rf"{_TIMEOUT}\b", flags):
        flags = f"{flags} {_TIMEOUT}={arguments.timeout}".lstrip()
    shared = {
        "PYTHONUNBUFFERED": "1",
        **os.environ,
        "JAX_COORDINATOR_ADDRESS": f"{host}:{port}",
        "JAX_COORDINATOR_BIND_ADDRESS": f"{host}:{port}",
        "JAX_NUM_PROCESSES": str(num),
        "XLA_FLAGS": flags,
    }
    if arguments.devices_per_process:
        shared["JAX_NUM_CPU_DEVICES"] = str(arguments.devices_per_process)
    return [shared | {"JAX_PROCESS_ID": str(i)} for i in range(num)]


def free_port(address: str) -> int:
    """A TCP port of this machine's address that nothing listens on.

    Raises:
        OSError: if the address is none of this machine's.
    """
    family, kind, _, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as probe:
        probe.bind(place)
        return probe.getsockname()[1]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROG,
        usage=f"{PROG} --processes N [options] -- COMMAND ...",
        description="Runs a command in N processes of this machine that join into one JAX program.",
        epilog="SIGTERM lets the processes save and end; Ctrl-C ends them, twice at once.",
    )
    add = parser.add_argument
    positive, natural = POSITIVE, NATURAL
    add("--processes", type=positive, required=True, metavar="N", help="how many processes")
    add(
        "--devices-per-process",
        type=positive,
        metavar="N",
        help="CPU devices of each (JAX's default: 1)",
    )
    add(
        "--restarts",
        type=natural,
        default=0,
        metavar="N",
        help="start all again, at most N times, when one fails (default: %(default)s)",
    )
    add(
        "--elastic",
        action="store_true",
        help="go on with the others when some are lost, and with one more on SIGUSR1",
    )
    add(
        "--min-processes",
        type=positive,
        metavar="N",
        help="how few an elastic run goes on with (default: 1)",
    )
    add(
        "--grace",
        type=at_least(float, 0),
        default=30,
        metavar="SECONDS",
        help="time to end by themselves after a failure or signal (default: %(default)s)",
    )
    add(
        "--timeout",
        type=positive,
        default=60,
        metavar="SECONDS",
        help="longest wait for the others in a collective on CPUs (default: %(default)s)",
    )
    add(
        "--address",
        default="127.0.0.1",
        metavar="HOST",
        help="where process 0 listens for the others (default: %(default)s, this machine only)",
    )
    return parser


if __name__ == "__main__":
    main()
