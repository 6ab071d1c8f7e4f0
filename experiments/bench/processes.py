"""Real processes for benchmarks: each prints, last, a line of JSON with its results."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdist.launch.children import Children

CHILD = "--child"
"""The flag by which a benchmark knows that it is one of the processes."""


def run(
    module: str,
    num: int,
    patience: float,
    *,
    address: str = "127.0.0.1",
    port: int | None = None,
    before: Sequence[Sequence[str]] | None = None,
) -> list[dict[str, Any]]:
    """Runs this command line `num` times, with `--child`, as the processes of one JAX program.

    Args:
        module: the benchmark's module.
        num: how many processes.
        patience: seconds after which they are killed.
        address: where the others reach process 0.
        port: the port there; None for a free one of this machine.
        before: for each process the words before its command; none is left at the end.

    Returns:
        The results of each process.

    Raises:
        SystemExit: if one fails, with the end of its output, or takes too long.
    """
    environment = {name: v for name, v in os.environ.items() if not name.startswith("JAX_")}
    environment |= {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": f"{address}:{port or _free_port()}",
        "JAX_NUM_PROCESSES": str(num),
    }
    command = [sys.executable, "-m", module, *sys.argv[1:], CHILD]
    deadline = time.monotonic() + patience
    results = []
    with Children() as children:
        processes = [
            children.start(
                [*words, *command],
                env=environment | {"JAX_PROCESS_ID": str(i)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for i, words in enumerate(before or [()] * num)
        ]
        for process in processes:
            try:
                output = process.communicate(timeout=max(0.0, deadline - time.monotonic()))[0]
            except subprocess.TimeoutExpired:
                message = f"process {len(results)} of {num} took more than {patience} s"
                raise SystemExit(message) from None
            if process.returncode:
                raise SystemExit(f"a process ended with {process.returncode}:\n{output[-3000:]}")
            results.append(json.loads(output.splitlines()[-1]))
    return results


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
