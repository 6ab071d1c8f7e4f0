"""Where 8 workers should live: `python -m experiments.bench.layouts [--rounds 5]`.

Step time of the CNN under MGRAWA with all workers on 1 device, as one batched program (vmap) or
written out (unroll), and with one worker on each of 8 devices (on CPU: forced host devices).
`ratio` is that of 1 device, unrolled, over 8 devices; on an accelerator of one device, of vmap over
unroll.
"""

import argparse
import statistics

import jax
from rich.console import Console
from rich.table import Table

from experiments.arguments import POSITIVE
from experiments.bench import common
from jaxdist.workers import Workers, force_host_devices


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=POSITIVE, default=5)
    args = parser.parse_args()
    force_host_devices(common.WORKERS)
    one = Workers.create(common.WORKERS, devices=jax.devices()[:1])
    places = {"1 device, vmap": (one, "vmap"), "1 device, unroll": (one, "unroll")}
    if len(jax.devices()) >= common.WORKERS:
        spread = Workers.create(common.WORKERS, devices=jax.devices()[: common.WORKERS])
        places["8 devices"] = (spread, "vmap")
    sides = {
        name: common.Stepper(common.cnn_run("mgrawa", workers, local, period=common.PERIOD))
        for name, (workers, local) in places.items()
    }
    taken = common.interleave(sides, common.PERIOD, args.rounds)
    table = Table("layout", "ms a step")
    milliseconds = {
        name: round(1e3 * statistics.median(seconds) / common.PERIOD, 3)
        for name, seconds in taken.items()
    }
    for name, ms in milliseconds.items():
        table.add_row(name, f"{ms:.2f}")
    Console().print(table)
    slow, fast = list(taken)[-2:]
    common.finish(
        "layouts", ratio=round(common.ratio(taken[slow], taken[fast]), 3), milliseconds=milliseconds
    )


if __name__ == "__main__":
    main()
