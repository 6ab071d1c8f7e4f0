"""Averages that overlap the steps: what a rule launches runs on devices of its own meanwhile."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxdist import rules
from jaxdist.traffic import Traffic
from jaxdist.training.due import passed, traffic_of
from jaxdist.training.feed import Advance, Feed, Progress
from jaxdist.training.run import Run
from jaxdist.training.step import Step, make_step
from jaxdist.training.way import Way
from jaxdist.workers import Workers


@dataclasses.dataclass(frozen=True)
class Overlap(Way):
    """Steps whose launched averages are programs of their own, on other devices.

    A launch takes a copy of the parameters and of the rule's state to the other devices and goes
    on there, while the next steps run. What has become of the state is taken back before the step
    that uses it, before the next launch, and where the run stops to log, to evaluate or to save.
    The numbers are those of the steps with the average inside. On CPU this is the way to overlap
    the two: neither one program nor two on one device do.

    Attributes:
        workers: as many workers as the run has, laid out alike, on other devices of the same
            processes.

    Raises:
        ValueError: by `check`, if they are others; by `make_advance`, if the rule launches nothing
            that is used at a later step.
    """

    workers: Workers

    def check(self, run: Run) -> None:
        """Raises a ValueError unless each worker has a twin of its own."""
        meshes = run.workers.mesh, self.workers.mesh
        shapes = [dict(mesh.shape) for mesh in meshes]
        devices = [list(mesh.devices.flat) for mesh in meshes]
        shared = set(devices[0]) & set(devices[1])
        if self.workers.num != run.workers.num or shapes[0] != shapes[1] or shared:
            raise ValueError(
                f"Overlap: workers.num={self.workers.num} on {shapes[1]}, {len(shared)} devices of "
                f"it shared: allowed are {run.workers.num} on {shapes[0]}, on others"
            )
        if any(a.process_index != b.process_index for a, b in zip(*devices, strict=True)):
            raise ValueError(
                "Overlap: workers: allowed are devices that are each in the process of its worker"
            )

    def make_advance(self, run: Run, traffic: Traffic, step: Step) -> Advance:
        """Compiles the steps and the launches."""
        return _make_overlap(run, self.workers)


def _make_overlap(run: Run, others: Workers) -> Advance:
    launches, rest = (traffic_of(run, only) for only in (("launch",), ("local", "sync")))
    if not launches.entries:
        raise ValueError(
            f"Overlap: the rule {run.rule!r} uses its averages at once: allowed are rules that use "
            f"them at a later step, with a delay above 0: lasgd, cocod, dasgd, overlap_local_sgd "
            f"and streaming_diloco"
        )
    feed, step = Feed(run), make_step(run, only=("local", "sync"))
    launch = _make_launch(run, others)
    flying: list[Any] = []

    def land(state):
        """The state with what was launched last, unless it has been taken back already."""
        if not flying:
            return state
        arrived = _move(flying.pop(), others, run.workers)
        pairs = zip(arrived, _rule_states(state.opt_state), strict=True)
        states = [new._replace(count=old.count) for new, old in pairs]
        return state._replace(opt_state=_with_rule_states(state.opt_state, states))

    def advance(state, done):
        launched, used = (t.pattern(np.array([done])).any() for t in (launches, rest))
        if launched or used:
            state = land(state)
        state, metrics = step(state, feed.batch(done), feed.probe(done))
        if launched:
            own = state.params, _rule_states(state.opt_state)
            flying.append(launch(done, *_move(own, run.workers, others)))
        stops = run.log_every, run.eval_every, run.checkpoint_every
        if any(passed(done, done + 1, every, run.steps) for every in stops):
            state = land(state)
            metrics |= rules.metrics(state.opt_state)  # what has landed with it
        return Progress(done + 1, state, metrics, [metrics["loss"]])

    return advance


def _make_launch(run: Run, others: Workers) -> Callable:
    """Compiles what the rule launches: the new states of the rules in the chain."""

    def one_worker(step, params, states):
        opt_state = _with_rule_states(run.tx.init(params), states)
        _, new = rules.communicate(run.tx, opt_state, params, step=step, only=("launch",))
        return (), _rule_states(new)

    compiled = others.spmd(one_worker)
    return lambda step, params, states: compiled(np.int32(step), params, states)[1]


def _rule_states(opt_state: Any) -> list[Any]:
    return list(filter(rules.is_rule, jax.tree.leaves(opt_state, is_leaf=rules.is_rule)))


def _with_rule_states(opt_state: Any, states: list[Any]) -> Any:
    new = iter(states)
    pick = lambda old: next(new) if rules.is_rule(old) else old
    return jax.tree.map(pick, opt_state, is_leaf=rules.is_rule)


def _move(tree: Any, source: Workers, target: Workers) -> Any:
    """A copy of stacked arrays on the twin of each of their devices; nothing leaves a process."""
    twin = dict(zip(source.mesh.devices.flat, target.mesh.devices.flat, strict=True))
    leaves, treedef = jax.tree.flatten(tree)
    shards = [[(s.data, twin[s.device]) for s in x.addressable_shards] for x in leaves]
    flat = [pair for parts in shards for pair in parts]
    copies = iter(jax.device_put([data for data, _ in flat], [device for _, device in flat]))
    moved = [
        jax.make_array_from_single_device_arrays(
            x.shape, NamedSharding(target.mesh, x.sharding.spec), [next(copies) for _ in parts]
        )
        for x, parts in zip(leaves, shards, strict=True)
    ]
    return treedef.unflatten(moved)
