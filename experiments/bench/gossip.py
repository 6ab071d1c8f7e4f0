"""What gossip costs: `python -m experiments.bench.gossip [--pairs 5] [--steps 48] [--check]`.

Two things of the CNN of two convolutions, 8 workers on 8 host devices, 32 images a worker and step:

- `ratio`: our samples per second with D-PSGD on a ring over those of the same in plain PyTorch, 8
  gloo processes of one thread that send to and receive from their neighbours (`torch_workers`);
- `overhead`: the step time of each decentralised rule over the step without communication, on
  average over what a rule does now and then.

Sides that are compared take turns. `--check` compares the parameters that D-PSGD reaches here and
in PyTorch from the same start, instead of timing anything.
"""

import argparse
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.arguments import POSITIVE, at_least
from experiments.bench import common, throughput
from jaxdist import topology
from jaxdist.workers import force_host_devices

CYCLE = 16  # steps: a multiple of every period below
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dpsgd, ring": ("dpsgd", {"topology": "ring"}),
    "dpsgd, ring, int8": ("dpsgd", {"topology": "ring", "compress": "int8"}),
    "dpsgd, al_dsgd": ("dpsgd", {"topology": "al_dsgd(graph=1)"}),
    "matcha": ("matcha", {}),
    "one_peer_exponential": ("one_peer_exponential", {}),
    "sgp": ("sgp", {}),
    "al_dsgd": ("al_dsgd", {}),
    "gossip_pga": ("gossip_pga", {"global_period": CYCLE}),
    "ad_psgd": ("ad_psgd", {}),
    "noloco, period 16": ("noloco", {"period": CYCLE}),
    "choco": ("choco", {}),
}


def main() -> None:
    """Times or compares, as the command line asks."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench.gossip",
        description="D-PSGD over the same in plain PyTorch, and what the rules on graphs cost.",
    )
    parser.add_argument("--pairs", type=POSITIVE, default=5, help="how often two sides are timed")
    parser.add_argument(
        "--steps",
        type=at_least(int, CYCLE, multiple=CYCLE),
        default=48,
        help="steps of each timing",
    )
    parser.add_argument("--check", action="store_true", help="compare the parameters instead")
    args = parser.parse_args()
    with cli.clean_errors(traceback=False):
        jax.config.update("jax_platforms", "cpu")
        force_host_devices(common.WORKERS)
        (ring,) = topology.make("ring", common.WORKERS)
        ours = throughput.OurSide("dpsgd", topology=ring, order="atc")
        with ours.in_torch("dpsgd", matrix=ring.matrix.tolist()) as theirs:
            if args.check:
                throughput.check("gossip --check", ours, theirs)
                return
            fields = throughput.measure(ours, theirs, args.pairs, args.steps)
        common.finish("gossip", **fields, overhead=overhead(args.pairs, args.steps))


def overhead(pairs: int, steps: int) -> dict[str, float]:
    """Times each rule and the step without communication in turn; prints and returns the ratios."""
    none = common.Stepper(common.cnn_run("none"))
    table = Table("rule", "step time over no communication", box=None)
    ratios = {}
    for name, (rule, hyper) in CASES.items():
        sides = {"none": none, "rule": common.Stepper(common.cnn_run(rule, **hyper))}
        taken = common.interleave(sides, steps, pairs)
        ratios[name] = round(common.ratio(taken["rule"], taken["none"]), 4)
        table.add_row(name, f"{ratios[name]:.3f}")
    Console(soft_wrap=True, highlight=False).print(table)
    return ratios


if __name__ == "__main__":
    main()
