"""Real processes that train together, for the tests."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

SECONDS = 150
"""How long the processes may take before they are killed."""

ROOT = Path(__file__).parents[1]


def python_path() -> str:
    """Where a process of a test finds the tests, and what pytest's process was given."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def started(num: int, code: str, *args: object) -> Iterator[list[subprocess.Popen]]:
    """`num` processes that run `code`, joined by JAX; what is left of them is killed at the end.

    Under JAX's runtime a process does not heed SIGTERM, so it is SIGKILL.
    """
    environment: Mapping[str, str] = {
        **{name: v for name, v in os.environ.items() if not name.startswith("JAX_")},
        "PYTHONPATH": python_path(),
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(num),
    }
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)],
            env={**environment, "JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(num)
    ]
    try:
        yield children
    finally:
        for child in children:
            child.kill()
            child.communicate()


def run_processes(num: int, code: str, *args: object, seconds: float = SECONDS):
    """Starts `num` processes and waits; gives each one's status and output."""
    with started(num, code, *args) as children:
        outputs = [child.communicate(timeout=seconds)[0] for child in children]
    return [(c.returncode, o) for c, o in zip(children, outputs, strict=True)]
