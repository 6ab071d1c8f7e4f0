"""What a benchmark's result says besides its numbers."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax


def machine() -> dict[str, Any]:
    """The processor, the cores that this process may use, and JAX's devices."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu(),
        "cores": cores,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def versions(*packages: str) -> dict[str, str]:
    """The versions of Python, JAX and further packages."""
    found = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", *packages)}
    return {"python": platform.python_version(), **found}


def finish(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], result: Mapping[str, Any]
) -> None:
    """Prints a table, and the result as the last line."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*map(str, row))
    Console(soft_wrap=True, highlight=False).print(table)
    print(json.dumps(result))


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
