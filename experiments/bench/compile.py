"""How long a rule takes to compile: `python -m experiments.bench.compile [--leaves 1000]`.

Seconds to lower and compile a step of a rule on a model of many small leaves (a ResNet, LoRA), over
those of the same equations written by hand as an optax transformation, all workers on one device.
By hand once as the equations stand, and once guarded, as the rules are: a worker whose parameters
are not finite is left out of the mean. Neither has metrics. Measured in turn; JAX's caches are
emptied before each.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from rich.console import Console
from rich.table import Table

from experiments.arguments import POSITIVE
from experiments.bench import common
from jaxdist import Workers, rules
from jaxdist.collectives import Axis


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--leaves", type=POSITIVE, default=1000)
    parser.add_argument("--size", type=POSITIVE, default=8, help="numbers in each leaf")
    parser.add_argument("--rounds", type=POSITIVE, default=3)
    parser.add_argument("--rules", nargs="+", default=[*BY_HAND], choices=[*BY_HAND])
    args = parser.parse_args(argv)
    workers = Workers.create(common.WORKERS, devices=jax.devices()[:1])
    x = {f"leaf{i:05d}": jnp.zeros((common.WORKERS, args.size)) for i in range(args.leaves)}
    table = Table("rule", "seconds", "by hand", "guarded by hand", "ratio", "ratio to guarded")
    seconds, ratios = {}, {}
    for name in args.rules:
        sides = {
            "rule": rules.compose(optax.identity(), name, workers.axis, **common.RULES[name]),
            "by hand": BY_HAND[name](workers.axis, _mean),
            "guarded": BY_HAND[name](workers.axis, _guarded_mean),
        }
        compiled = {side: compiling(workers, x, tx) for side, tx in sides.items()}
        taken = common.interleave(compiled, 1, args.rounds)
        seconds[name] = {side: round(sorted(t)[len(t) // 2], 2) for side, t in taken.items()}
        ratios[name] = {
            side: round(common.ratio(taken["rule"], taken[side]), 3)
            for side in ("by hand", "guarded")
        }
        shown = [f"{ratio:.2f}" for ratio in ratios[name].values()]
        table.add_row(name, *map(str, seconds[name].values()), *shown)
    Console().print(table)
    common.finish("compile", leaves=args.leaves, seconds=seconds, ratios=ratios)


def compiling(
    workers: Workers, x: dict, tx: optax.GradientTransformationExtraArgs
) -> Callable[[int], float]:
    """A function that compiles a step of all workers, from the beginning, and gives the seconds."""

    def step(t, x, state, u):
        grad = jax.tree.map(jnp.negative, u)
        updates, state = tx.update(u, state, x, step=t, value=jnp.float32(1), grad=grad)
        return t + 1, (optax.apply_updates(x, updates), state)

    def once(times: int) -> float:
        state = jax.vmap(tx.init)(x)
        jax.clear_caches()
        began = time.perf_counter()
        for _ in range(times):
            workers.spmd(step).lower(jnp.int32(0), x, state, x).compile()
        return time.perf_counter() - began

    return once


Mean = Callable[..., Any]  # of a tree, by the parameters that must be finite, axis and weight


def _when_due(step, sync, updates, state, params):
    keep = lambda updates, state, params: (updates, state)
    return lax.cond((step + 1) % common.PERIOD == 0, sync, keep, updates, state, params)


def local_sgd(axis: Axis, mean: Mean) -> optax.GradientTransformationExtraArgs:
    """A mean of the parameters every PERIOD steps."""

    def sync(updates, state, params):
        x = jax.tree.map(jnp.add, params, updates)
        return jax.tree.map(jnp.subtract, mean(x, x, axis), params), state

    def update(updates, state, params, *, step, **_):
        return _when_due(step, sync, updates, state, params)

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


def mgrawa(axis: Axis, mean: Mean) -> optax.GradientTransformationExtraArgs:
    """The equations of `rules.mgrawa` with its defaults."""

    def init(params):
        return {"norm": jnp.float32(0), "count": jnp.int32(0), "center": params}

    def sync(updates, state, params):
        x = jax.tree.map(jnp.add, params, updates)
        center = mean(x, x, axis, (1 - 0.85 ** state["count"]) / state["norm"])
        new = jax.tree.map(lambda a, c: a + 0.5 * (c - a), x, center)
        state = {"norm": jnp.float32(0), "count": jnp.int32(0), "center": center}
        return jax.tree.map(jnp.subtract, new, params), state

    def update(updates, state, params, *, step, grad, **_):
        norm = sum(jnp.sqrt(jnp.square(g).sum()) for g in jax.tree.leaves(grad))
        norm = 0.85 * state["norm"] + 0.15 * norm
        state = {**state, "norm": norm, "count": state["count"] + 1}
        pull = lambda u, p, c: u + 0.01 / common.PERIOD * (c - (p + u))
        updates = jax.tree.map(pull, updates, params, state["center"])
        return _when_due(step, sync, updates, state, params)

    return optax.GradientTransformationExtraArgs(init, update)


def diloco(axis: Axis, mean: Mean) -> optax.GradientTransformationExtraArgs:
    """The equations of `rules.diloco` with its defaults."""

    def init(params):
        return {"anchor": params, "momentum": jax.tree.map(jnp.zeros_like, params)}

    def sync(updates, state, params):
        x = jax.tree.map(jnp.add, params, updates)
        apart = mean(jax.tree.map(jnp.subtract, state["anchor"], x), x, axis)
        momentum = jax.tree.map(lambda m, d: 0.9 * m + d, state["momentum"], apart)
        move = lambda a, d, m: a - 0.7 * (d + 0.9 * m)
        anchor = jax.tree.map(move, state["anchor"], apart, momentum)
        state = {"anchor": anchor, "momentum": momentum}
        return jax.tree.map(jnp.subtract, anchor, params), state

    def update(updates, state, params, *, step, **_):
        return _when_due(step, sync, updates, state, params)

    return optax.GradientTransformationExtraArgs(init, update)


def _mean(tree, x, axis, weight=None):
    if weight is None:
        return lax.pmean(tree, axis)  # noqa: TID251, it is what rules are measured against
    total = _sum(weight, axis)
    return jax.tree.map(lambda s: s / total, _sum(_scaled(weight, tree), axis))


def _guarded_mean(tree, x, axis, weight=1.0):
    good = jnp.isfinite(optax.tree.norm(x))
    weight = jnp.where(good, weight, 0)
    tree = jax.tree.map(lambda a: jnp.where(good, a, 0), tree)
    return _mean(tree, x, axis, weight)


def _sum(tree, axis):
    return lax.psum(tree, axis)  # noqa: TID251, it is what rules are measured against


def _scaled(by, tree):
    return jax.tree.map(lambda x: by * x, tree)


BY_HAND = {"local_sgd": local_sgd, "mgrawa": mgrawa, "diloco": diloco}


if __name__ == "__main__":
    main()
