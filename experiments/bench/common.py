"""What the benchmarks share: the benchmark model's step, interleaved timing, and the last line."""

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

from jaxdist import Workers, rules
from jaxdist.data import Loader, digits, shards
from jaxdist.models import MODELS
from jaxdist.tasks import classification
from jaxdist.training import Run
from jaxdist.training.state import create
from jaxdist.training.step import make_step
from jaxdist.training.ways import EveryStep

WORKERS, PERIOD = 8, 8
# The rules with hyper-parameters that make them sync every PERIOD steps, all parts switched on.
RULES: dict[str, dict[str, Any]] = {
    "average_gradients": {},
    "local_sgd": {"period": PERIOD},
    "post_local_sgd": {"period": PERIOD, "after": 0},
    "hierarchical_sgd": {"periods": {PERIOD: 2, 2 * PERIOD: WORKERS}},
    "easgd": {"period": PERIOD},
    "eamsgd": {"period": PERIOD},
    "lsgd": {"period": PERIOD},
    "mgrawa": {"period": PERIOD},
    "lgrawa": {"period": PERIOD},
    "dppf": {"period": PERIOD},
    "diloco": {"period": PERIOD},
    "slowmo": {"period": PERIOD},
    "decoupled": {"period": PERIOD, "quorum": 4},
    "streaming_diloco": {"period": PERIOD, "fragments": 2, "delay": 2},
    "lasgd": {"period": PERIOD, "delay": 4},
    "cocod": {"period": PERIOD},
    "dasgd": {"period": PERIOD, "delay": 4},
    "overlap_local_sgd": {"period": PERIOD},
    "dpsgd": {"period": PERIOD, "topology": "al_dsgd(graph=1)"},
    "gossip_pga": {"global_period": PERIOD, "topology": "al_dsgd(graph=1)"},
    "matcha": {"period": PERIOD, "topology": "al_dsgd(graph=1)"},
    "one_peer_exponential": {"period": PERIOD},
    "ad_psgd": {"period": PERIOD},
    "al_dsgd": {"period": PERIOD},
    "sgp": {"period": PERIOD, "topology": "exponential"},
    "noloco": {"period": PERIOD},
    "choco": {"period": PERIOD},
}


def cnn_run(rule: str, workers: Workers | None = None, local: str = "vmap", **hyper) -> Run:
    """The benchmark's run: the two-convolution CNN on 28 x 28 digits, batch 32 a worker.

    Args:
        rule: a rule's name, or "none" for the local optimizer alone.
        workers: their layout; None for all devices.
        local: how several workers on one device are computed.
        **hyper: the rule's hyper-parameters.
    """
    workers = workers or Workers.create(WORKERS)
    dataset = digits(size=28)
    own = rule != "none" and rules.row(rule).momentum
    tx = optimizer = optax.sgd(0.05, momentum=None if own else 0.9, nesterov=True)
    if rule != "none":
        tx = rules.compose(optimizer, rule, workers.axis, **hyper)
    return Run(
        workers=workers,
        task=classification(MODELS["cnn"](dataset.input_shape, dataset.num_classes), dataset),
        dataset=dataset,
        tx=optax.with_extra_args_support(tx),
        rule=rule,
        way=EveryStep(),
        shards=shards.iid(dataset.train, WORKERS, seed=0),
        batch_size=32,
        steps=1,
        local=local,
    )


class Stepper:
    """A compiled run that takes steps on demand, on batches that lie on the devices already."""

    def __init__(self, run: Run, warm_up: int = PERIOD):
        load = Loader(run.dataset.train, run.sampler, run.batch_sharding)
        self._batches = [load(t) for t in range(4)]
        self._step, self._state = make_step(run), create(run)
        self(warm_up)  # compiles

    def __call__(self, steps: int) -> float:
        """Takes `steps` steps; the seconds that took."""
        began = time.perf_counter()
        before = None
        for t in range(steps):
            self._state, metrics = self._step(self._state, self._batches[t % 4], None)
            if before is not None:  # few steps in flight: see "CPU devices" in the README
                jax.block_until_ready(before)
            before = metrics["loss"]
        jax.block_until_ready(self._state)
        return time.perf_counter() - began


def interleave(
    sides: Mapping[str, Callable[[int], float]], steps: int, rounds: int
) -> dict[str, list[float]]:
    """Times all sides in turn, `rounds` times over, every other round in reverse order.

    Returns:
        For each side its seconds in each round.
    """
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds):
        order = list(sides) if i % 2 == 0 else list(sides)[::-1]
        for name in order:
            taken[name].append(sides[name](steps))
    return taken


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over the rounds of ours / theirs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def finish(name: str, **fields: Any) -> None:
    """Prints the last line: the figures, and what they were measured on."""
    names = ("jax", "jaxlib", "optax", "flax")
    where = {
        "benchmark": name,
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in names},
    }
    print(json.dumps(where | fields))
