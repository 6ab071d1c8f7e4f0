"""Every rule, compressor and aggregate once or more: the table of the tests of what all keep.

A case is a rule of short period with all its parts at work: in 6 steps each of them syncs, launches
and applies what was late.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist import compression, robust, rules, topology

PERIOD, STEPS, W = 2, 6, 4
SHAPES = {"a": (), "b": {"kernel": (5, 3)}}
LATE = ("cocod", "dasgd", "lasgd", "streaming_diloco")  # a sync of theirs is used later

# name: (rule, its hyper-parameters, or a function of the number of workers that gives them)
PLAIN = {
    "average_gradients": {},
    "local_sgd": {"period": PERIOD},
    "post_local_sgd": {"period": PERIOD, "after": 1},
    "hierarchical_sgd": lambda num: {"periods": {PERIOD: 2, 2 * PERIOD: num}},
    "easgd": {"period": PERIOD, "alpha": 0.1},
    "eamsgd": {"period": PERIOD, "alpha": 0.1, "momentum": 0.5},
    "lsgd": {"period": PERIOD, "strength": 0.3, "prox": 0.0},
    "mgrawa": {"period": PERIOD, "strength": 0.5, "prox": 0.0},
    "lgrawa": {"period": PERIOD, "strength": 0.5, "prox": 0.0},
    "dppf": {"period": PERIOD, "pull": 0.4, "push": 0.05},
    "diloco": {"period": PERIOD, "momentum": 0.5},
    "slowmo": {"period": PERIOD},
    "decoupled": {"period": PERIOD, "momentum": 0.5},
    "streaming_diloco": {"period": 2 * PERIOD, "fragments": 2, "delay": 1},
    "lasgd": {"period": PERIOD, "delay": 1},
    "cocod": {"period": PERIOD},
    "dasgd": {"period": PERIOD, "delay": 1},
    "overlap_local_sgd": {"period": PERIOD},
    "dpsgd": {"period": PERIOD, "topology": "ring, star"},
    "gossip_pga": {"global_period": 2 * PERIOD},
    "matcha": {"period": PERIOD, "topology": "ring", "budget": 0.5},
    "one_peer_exponential": {"period": PERIOD},
    "ad_psgd": {"period": PERIOD},
    "al_dsgd": {"period": PERIOD, "topologies": "ring"},
    "sgp": {"period": PERIOD},
    "noloco": {"period": PERIOD, "momentum": 0.5},
    "choco": {"period": PERIOD, "compress": "top_k(fraction=0.5)"},
}
VARIANTS = {
    "lsgd, groups and prox": (
        "lsgd",
        lambda num: {"period": 2 * PERIOD, "local_period": PERIOD, "groups": _halves(num)},
    ),
    "mgrawa, prox": ("mgrawa", {"period": PERIOD, "prox": 0.1, "norm": "l2"}),
    "lgrawa, probe": ("lgrawa", {"period": PERIOD, "prox": 0.1, "norm_source": "probe"}),
    "lasgd, delays": ("lasgd", lambda num: {"period": PERIOD, "delay": [_delays(num)]}),
    "decoupled, arrived": (
        "decoupled",
        lambda num: {"period": PERIOD, "arrived": [[i != 1 for i in range(num)]], "quorum": 2},
    ),
    "al_dsgd, released": ("al_dsgd", {"topologies": "ring", "variant": "released", "budget": 0.5}),
    "choco, neighbour": (
        "choco",
        lambda num: {"copies": "neighbour", "topology": topology.make("ring", num)},
    ),
}
# Each on a rule whose mean may be sent or made so.
COMPRESSED = {
    "int8": "local_sgd",
    "bf16": "local_sgd",
    "top_k": "local_sgd",
    "random_k": "local_sgd",
    "sign": "local_sgd",
    "power_sgd": "local_sgd",
}
AGGREGATED = {
    "median": "local_sgd",
    "trimmed_mean": "local_sgd",
    "geometric_median": "local_sgd",
    "centered_clipping": "local_sgd",
    "krum": "local_sgd",
    "multi_krum": "local_sgd",
}
# The other ways in which messages are put together: levels, leaders, neighbours, sums.
WAYS = {
    "mgrawa, top_k": ("mgrawa", {"prox": 0.0}, "top_k"),
    "lgrawa, int8": ("lgrawa", {"prox": 0.0}, "int8"),
    "lsgd, sign": ("lsgd", {"prox": 0.0}, "sign"),
    "dpsgd, int8": ("dpsgd", {}, "int8"),
    "diloco, random_k": ("diloco", {"momentum": 0.0}, "random_k"),
    "average_gradients, power_sgd": ("average_gradients", {}, "power_sgd"),
}
OPTIONS = {
    "int8": "int8(chunk=4)",
    "top_k": "top_k(fraction=0.5)",
    "random_k": "random_k(fraction=0.5)",
    "power_sgd": "power_sgd(rank=1)",
    "krum": "krum(bad=0)",
    "multi_krum": "multi_krum(bad=0, chosen=2)",
}


ERRORS: dict[str, Exception] = {}


def check(name: str, errors: dict[str, Exception] = ERRORS) -> None:
    """Raises what a case was refused with when all were traced together."""
    if name in errors:
        raise errors[name]


def _halves(num):
    return [list(range(num // 2)), list(range(num // 2, num))]


def _delays(num):
    return [1 + i % PERIOD for i in range(num)]


def _cases():
    for name, hyper in PLAIN.items():
        yield name, (name, hyper)
    yield from VARIANTS.items()
    for name, rule in COMPRESSED.items():
        yield f"{rule}, {name}", (rule, {"period": PERIOD, "compress": OPTIONS.get(name, name)})
    for name, rule in AGGREGATED.items():
        yield f"{rule}, {name}", (rule, {"period": PERIOD, "aggregate": OPTIONS.get(name, name)})
    for name, (rule, hyper, compress) in WAYS.items():
        period = {} if rule == "average_gradients" else {"period": PERIOD}
        yield name, (rule, period | hyper | {"compress": OPTIONS.get(compress, compress)})


CASES: dict[str, tuple[str, dict | Callable[[int], dict]]] = dict(_cases())


def rule_of(name: str) -> str:
    """The rule of a case."""
    return CASES[name][0]


def hyper_of(name: str, num: int = W) -> dict[str, Any]:
    """The hyper-parameters of a case with `num` workers."""
    hyper = CASES[name][1]
    return hyper(num) if callable(hyper) else hyper


def make(name: str, axis: Any = "w", num: int = W, **changes: Any):
    """The rule of a case, without an optimizer before it."""
    return rules.RULES[rule_of(name)](axis, **hyper_of(name, num) | changes)


def compose(name: str, optimizer: optax.GradientTransformation, axis: Any = "w", num: int = W):
    """The rule of a case and a local optimizer, in the order that the rule needs."""
    return rules.compose(optimizer, rule_of(name), axis, **hyper_of(name, num))


def tree(seed: int, *lead: int, dtype: Any = np.float32) -> Any:
    """A tree of SHAPES with normal numbers, its leaves `[*lead, ...]`."""
    rng = np.random.default_rng(seed)
    draw = lambda s: rng.normal(scale=0.5, size=(*lead, *s)).astype(dtype)
    return jax.tree.map(draw, SHAPES, is_leaf=lambda s: isinstance(s, tuple))


def start(num: int = W, dtype: Any = np.float32) -> Any:
    """The parameters at the start, the same on all workers: leaves `[num, ...]`."""
    return jax.tree.map(lambda x: jnp.asarray(np.stack([x] * num)), tree(0, dtype=dtype))


def extra(update: Any, value: Any = 1.0, grad: Any = None) -> dict[str, Any]:
    """What all rules need besides step: keyword arguments of `update`."""
    grad = jax.tree.map(jnp.negative, update) if grad is None else grad
    return {"value": value, "grad": grad, "probe_grad": grad}


@functools.cache
def stepper(num: int = W):
    """All cases as one program of `(t, xs, states, updates, values, grads) -> (xs, states)`.

    But for t everything has an entry for each case. Compiled once for all tests of this process; a
    case that cannot be traced is put into `ERRORS`, so that the others are tested.
    """
    txs = {name: make(name, num=num) for name in CASES}

    def one(t, xs, states, updates, values, grads):
        xs, states = {**xs}, {**states}
        for name, tx in txs.items():
            u, more = updates[name], extra(updates[name], values[name], grads[name])
            try:
                moved, states[name] = tx.update(u, states[name], xs[name], step=t, **more)
            except Exception as error:
                ERRORS[name] = error
            else:
                xs[name] = optax.apply_updates(xs[name], moved)
        return xs, states

    return jax.jit(jax.vmap(one, in_axes=(None, 0, 0, 0, 0, 0), axis_name="w"))


def step_all(t: int, xs: Any, states: Any, *inputs: Any, num: int = W) -> tuple[Any, Any]:
    """A step of `stepper` with the same updates, losses and gradients for all cases."""
    each = [dict.fromkeys(CASES, part) for part in inputs]
    return stepper(num)(jnp.int32(t), xs, states, *each)


@functools.cache
def begin(num: int = W):
    """The states of all cases at the start, stacked."""
    x = start(num)
    return {name: jax.vmap(make(name, num=num).init)(x) for name in CASES}


def healthy_inputs(t: int, num: int = W):
    """Updates, losses and gradients of a step at which nothing is wrong."""
    grads = tree(100 + t, num)
    values = np.random.default_rng(t).uniform(0.1, 1, num).astype(np.float32)
    return jax.tree.map(lambda g: -0.1 * g, grads), values, grads


@functools.cache
def calls(num: int = W, steps: int = STEPS):
    """The parameters and states of all cases after `steps` calls of `stepper`, as numpy."""
    xs, states = dict.fromkeys(CASES, start(num)), begin(num)
    for t in range(steps):
        xs, states = step_all(t, xs, states, *healthy_inputs(t, num), num=num)
    return jax.tree.map(np.asarray, (xs, states))


assert list(PLAIN) == list(rules.RULES), "a rule without a case"
assert list(COMPRESSED) == list(compression.COMPRESSORS), "a compressor without a case"
assert list(AGGREGATED) == list(robust.AGGREGATES), "an aggregate without a case"
