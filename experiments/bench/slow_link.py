"""A link of limited bandwidth between two processes of this machine.

Two network namespaces, joined by a pair of virtual interfaces that each let so many bits a second
pass (a token bucket filter). Needs Linux, root, and iproute2's `ip` and `tc`.
"""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HOSTS = Path("/etc/netns")  # where `ip netns exec` looks for a namespace's own /etc/hosts
FILTER = "burst 256k latency 400ms"


class End(NamedTuple):
    """One end of a link.

    Attributes:
        address: its IP address.
        command: what to put before a command that is to run there; the process stays the same.
    """

    address: str
    command: tuple[str, ...] = ()


@contextlib.contextmanager
def slow_link(mbit: float) -> Iterator[tuple[End, End]]:
    """Makes the link, and removes it in any case.

    Names are random, so that several may be there at once. At each end the host's own name is the
    address of that end: gloo listens there.

    Args:
        mbit: what passes in each direction, in 10^6 bits a second.

    Raises:
        OSError: where this machine does not allow it, with the reason.
    """
    if not (shutil.which("ip") and shutil.which("tc")):
        raise OSError("ip and tc are not installed")
    if os.geteuid():
        raise OSError("only root may make network namespaces")
    name = f"jaxdist-{secrets.token_hex(4)}"
    spaces = [f"{name}-a", f"{name}-b"]
    ends = [
        End(f"10.77.0.{i}", ("ip", "netns", "exec", space)) for i, space in enumerate(spaces, 1)
    ]
    with contextlib.ExitStack() as stack:
        for space in spaces:
            _run("ip", "netns", "add", space)
            stack.callback(_remove, space)
        a, b = spaces
        _run(*f"ip link add wire netns {a} type veth peer name wire netns {b}".split())
        for space, end in zip(spaces, ends, strict=True):
            for line in (
                f"ip address add {end.address}/24 dev wire",
                "ip link set lo up",
                "ip link set wire up",
                f"tc qdisc add dev wire root tbf rate {mbit}mbit {FILTER}",
            ):
                _run(*end.command, *line.split())
            folder = HOSTS / space
            folder.mkdir(parents=True)
            (folder / "hosts").write_text(
                f"127.0.0.1 localhost\n{end.address} {socket.gethostname()}\n"
            )
        yield tuple(ends)


def _remove(space: str) -> None:
    subprocess.run(["ip", "netns", "delete", space], capture_output=True)
    shutil.rmtree(HOSTS / space, ignore_errors=True)
    with contextlib.suppress(OSError):
        HOSTS.rmdir()  # if it is empty


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
