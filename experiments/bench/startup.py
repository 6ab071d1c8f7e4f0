"""How long until something happens: `python -m experiments.bench.startup [--rounds 3]`.

Seconds, in a fresh Python process, to import JAX, to import jaxdist, and for the main job
(`experiments.train --config digits_mgrawa`) to have finished its first step. `ratio` is the time to
import jaxdist over the time to import JAX, flax and optax, which it cannot do without.
"""

import argparse
import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

from experiments.arguments import POSITIVE
from experiments.bench import common
from jaxdist.launch.children import Children

SIDES = {
    "import jax, flax, optax": "import jax, optax; from flax import nnx",
    "import jaxdist": "import jaxdist",
    "first step of the main job": """
from experiments import cli, configs
config = configs.load("digits_mgrawa")
cli.start(config.workers)
from jaxdist.config import build
from experiments.bench.common import Stepper
Stepper(build(config), warm_up=1)
""",
}


def seconds(code: str) -> float:
    """Seconds from the start of a Python process to the end of `code`."""
    clock = "import time; print(time.clock_gettime(time.CLOCK_MONOTONIC))"
    command = [sys.executable, "-c", f"{code}\n{clock}"]
    with Children() as children:
        before = time.clock_gettime(time.CLOCK_MONOTONIC)  # shared by all processes
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        child = children.start(command, **pipes)
        output, errors = child.communicate()
    if child.returncode:
        raise SystemExit(f"a process ended with {child.returncode}:\n{errors[-3000:]}")
    return float(output.split()[-1]) - before


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=POSITIVE, default=3)
    args = parser.parse_args()
    sides = {name: lambda _, code=code: seconds(code) for name, code in SIDES.items()}
    taken = common.interleave(sides, 1, args.rounds)
    table = Table("in a fresh process", "seconds")
    medians = {name: round(statistics.median(values), 2) for name, values in taken.items()}
    for name, value in medians.items():
        table.add_row(name, f"{value:.2f}")
    Console().print(table)
    base, ours, _ = taken.values()
    common.finish("startup", ratio=round(common.ratio(ours, base), 3), seconds=medians)


if __name__ == "__main__":
    main()
