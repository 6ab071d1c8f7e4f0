"""The rules by which workers agree, as optax gradient transformations.

A rule goes last in an `optax.chain`, after the local optimizer; `average_gradients` goes first.
`RULES` names them all, with what programs must know of each.
"""

import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdist.collectives import Axis
from jaxdist.names import lookup
from jaxdist.rules import grawa, leader
from jaxdist.rules.al_dsgd import al_dsgd
from jaxdist.rules.averaging import (
    average_gradients,
    hierarchical_sgd,
    local_sgd,
    post_local_sgd,
)
from jaxdist.rules.choco import choco
from jaxdist.rules.decoupled import decoupled
from jaxdist.rules.delayed import cocod, dasgd, lasgd
from jaxdist.rules.elastic import eamsgd, easgd
from jaxdist.rules.gossip import ad_psgd, dpsgd, gossip_pga, one_peer_exponential
from jaxdist.rules.grawa import lgrawa, mgrawa
from jaxdist.rules.leader import lsgd
from jaxdist.rules.matcha import matcha
from jaxdist.rules.noloco import noloco
from jaxdist.rules.outer import diloco, slowmo
from jaxdist.rules.overlap import overlap_local_sgd
from jaxdist.rules.push_pull import dppf
from jaxdist.rules.push_sum import sgp
from jaxdist.rules.reset import reset_every
from jaxdist.rules.row import Rule
from jaxdist.rules.streaming import streaming_diloco
from jaxdist.trees import path_name

RULES: dict[str, Rule] = {
    "average_gradients": Rule(average_gradients, first=True),
    "local_sgd": Rule(local_sgd, periodic=True),
    "post_local_sgd": Rule(post_local_sgd),
    "hierarchical_sgd": Rule(hierarchical_sgd),
    "easgd": Rule(easgd, periodic=True),
    "eamsgd": Rule(eamsgd, periodic=True, momentum=True),
    "lsgd": Rule(lsgd, periodic=True, asks=lambda options: ("value",), barrier=leader.barrier),
    "mgrawa": Rule(mgrawa, periodic=True, asks=grawa.asks),
    "lgrawa": Rule(lgrawa, periodic=True, asks=grawa.asks),
    "dppf": Rule(dppf, periodic=True),
    "diloco": Rule(diloco, periodic=True),
    "slowmo": Rule(slowmo, periodic=True),
    "decoupled": Rule(decoupled, periodic=True, table="arrived"),
    "streaming_diloco": Rule(streaming_diloco, late="delay"),
    "lasgd": Rule(lasgd, late="delay", table="delay", bound="max_delay"),
    "cocod": Rule(cocod, periodic=True, late="period"),
    "dasgd": Rule(dasgd, late="delay", table="delay"),
    "overlap_local_sgd": Rule(overlap_local_sgd, periodic=True, late="period"),
    "dpsgd": Rule(dpsgd, periodic=True),
    "gossip_pga": Rule(gossip_pga),
    "matcha": Rule(matcha, periodic=True),
    "one_peer_exponential": Rule(one_peer_exponential, periodic=True),
    "ad_psgd": Rule(ad_psgd, periodic=True),
    "al_dsgd": Rule(al_dsgd, periodic=True, asks=lambda options: ("value",)),
    "sgp": Rule(sgp, periodic=True),
    "noloco": Rule(noloco, periodic=True),
    "choco": Rule(choco, periodic=True),
}

__all__ = [
    "RULES",
    "Rule",
    "center",
    "check_order",
    "communicate",
    "compose",
    "is_rule",
    "metrics",
    "row",
    *RULES,
]


def row(name: str) -> Rule:
    """A rule of `RULES` with its facts; a function that was put there is one without any.

    Raises:
        ValueError: if there is no such rule.

    Example:
        >>> row("eamsgd").momentum, row("lasgd").late
        (True, 'delay')
    """
    entry = lookup(RULES, name, "rule")
    return entry if isinstance(entry, Rule) else Rule(entry)


def compose(
    optimizer: optax.GradientTransformation,
    rule: str,
    axis: Axis,
    *,
    reset_inner: bool = False,
    **hyper: Any,
) -> optax.GradientTransformationExtraArgs:
    """Chains a local optimizer and a rule in the order that the rule needs.

    Args:
        optimizer: the local optimizer of each worker.
        rule: a name in `RULES`.
        axis: the workers' axis.
        reset_inner: whether the optimizer starts anew after every sync, as clients of federated
            learning do, by `optimizers.reset_every`: its momentum, its moments, its counts and
            schedules. Only for rules that sync every `period` steps, as `local_sgd` and `diloco`.
        **hyper: the rule's hyper-parameters.

    Raises:
        ValueError: if the rule is unknown, or refuses its hyper-parameters, or `reset_inner` is
            asked for and its syncs are not every `period` steps.

    Example:
        >>> import jax, optax, jaxdist
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> tx = jaxdist.rules.compose(optax.sgd(0.1), "mgrawa", workers.axis, period=16)
    """
    chosen = row(rule)
    made = chosen(axis, **hyper)
    if reset_inner:
        if not chosen.periodic:
            raise ValueError(
                f"reset_inner={reset_inner}: allowed is False; it needs a rule that syncs all at "
                f"once every `period` steps, which {rule} does not"
            )
        optimizer = reset_every(optimizer, chosen.options(**hyper)["period"])
    parts = (made, optimizer) if chosen.first else (optimizer, made)
    return optax.with_extra_args_support(optax.chain(*parts))


def communicate(
    tx: optax.GradientTransformationExtraArgs,
    state: optax.OptState,
    params: optax.Params,
    *,
    only: Sequence[str] = ("sync", "launch"),
    **extra: Any,
) -> tuple[optax.Params, optax.OptState]:
    """What the rules in a chain do at a sync, without a local step before it.

    The parameters are those after the last local step; the optimizer's part of the chain neither
    acts nor changes.

    Args:
        tx: a chain, as `compose` makes it.
        state: its state.
        params: of this worker.
        only: the parts of the rules that are done, of `rules.base.PARTS`.
        **extra: `step`, and what else the rules need.

    Returns:
        The new parameters and state.

    Example:
        >>> import jax, jax.numpy as jnp, jaxdist, optax
        >>> tx = jaxdist.rules.compose(optax.sgd(0.1), "local_sgd", "w", period=4)
        >>> sync = lambda p: communicate(tx, tx.init(p), p, step=3)[0]
        >>> jax.vmap(sync, axis_name="w")(jnp.array([1.0, 3.0])).tolist()
        [2.0, 2.0]
    """
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, new = tx.update(zeros, state, params, only=only, **extra)
    params = optax.apply_updates(params, updates)
    return params, jax.tree.map(
        lambda n, old: n if is_rule(n) else old, new, state, is_leaf=is_rule
    )


def is_rule(state: Any) -> bool:
    """Whether this part of an optimizer state is a rule's, as `rules.base.State` describes it."""
    return isinstance(state, tuple) and {"count", "metrics"} <= {*getattr(state, "_fields", ())}


def metrics(state: optax.OptState) -> dict[str, jax.Array]:
    """What the rules in an optimizer state report of their last sync.

    Args:
        state: the state of a chain, of one worker or stacked.

    Returns:
        Arrays by name, as "weight", "center_distance", "leader"; of a tree, one for each leaf, as
        "weight/dense/kernel". Zeros (or a leader of -1) before the first sync. What a second rule
        of the chain has under the same name is "weight (2)".

    Warns:
        UserWarning: if a transformation comes after a rule, or `optax.MultiSteps` is around one.
    """
    check_order(state)
    values = {}
    for tree in _fields(state, "metrics"):
        for path, value in jax.tree_util.tree_leaves_with_path(tree):
            name, number = path_name(path), 1
            while (unique := name if number == 1 else f"{name} ({number})") in values:
                number += 1
            values[unique] = value
    return values


def check_order(state: optax.OptState) -> None:
    """Looks at where rules stand in a chain, as its state shows it.

    Warns:
        UserWarning: if a transformation comes after a rule, which then works on what is not yet the
            change of the parameters; or if `optax.MultiSteps` is around one, where it communicates
            at every micro-step and the extra argument `step` is wrong.

    Example:
        >>> import warnings, jax.numpy as jnp, jaxdist, optax
        >>> tx = optax.chain(jaxdist.rules.local_sgd("w"), optax.adam(0.1))
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     jaxdist.rules.check_order(tx.init(jnp.ones(3)))
        >>> str(caught[0].message)[:39]
        'a transformation comes after a rule, so'
    """
    parts = jax.tree.leaves(state, is_leaf=lambda s: s is not state and isinstance(s, tuple))
    parts = [part for part in parts if isinstance(part, tuple)]
    ruled = [_holds_rule(part) for part in parts]
    last = [_holds_rule(part, last=True) for part in parts]
    if type(state) is tuple and any(before and not after for before, after in pairwise(last)):
        warnings.warn(
            "a transformation comes after a rule, so that workers will not agree on the parameters;"
            " a rule goes last in a chain: optax.chain(optimizer, rule), as rules.compose does",
            stacklevel=3,
        )
    if isinstance(state, optax.MultiStepsState) and any(ruled):
        warnings.warn(
            "optax.MultiSteps is around a rule, which then communicates at every micro-step of a "
            "step that is due; leave out step=..., which would count micro-steps, or accumulate "
            "gradients before the chain",
            stacklevel=3,
        )
    for part in parts:
        if not is_rule(part):
            check_order(part)


def center(state: optax.OptState) -> optax.Params | None:
    """The centre that a rule in an optimizer state keeps, or None.

    EASGD's has a memory; that of MGRAWA and LGRAWA is the weighted mean of the last sync, and kept
    only with prox > 0.
    """
    return next((c for c in _fields(state, "center") if jax.tree.leaves(c)), None)


def _holds_rule(state: Any, last: bool = False) -> bool:
    parts = filter(is_rule, jax.tree.leaves(state, is_leaf=is_rule))
    return any(not last or getattr(rule, "last", True) for rule in parts)


def _fields(state: Any, name: str) -> Iterator[Any]:
    has = lambda s: isinstance(s, tuple) and name in getattr(s, "_fields", ())
    for part in jax.tree.leaves(state, is_leaf=has):
        if has(part):
            yield getattr(part, name)
