"""Count-triggered rounds: workers take unequal numbers of local steps, then all sync."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P

from jaxdist import collectives, rules
from jaxdist.checks import check_integer
from jaxdist.traffic import Traffic
from jaxdist.training.due import traffic_of
from jaxdist.training.feed import Advance, Feed, Progress
from jaxdist.training.multihost import Store
from jaxdist.training.run import Run
from jaxdist.training.state import abstract
from jaxdist.training.step import Step, make_probe_gradient, worker_step
from jaxdist.training.way import Way
from jaxdist.trees import is_real
from jaxdist.workers import Workers

_RUNS = itertools.count()


@dataclasses.dataclass(frozen=True, eq=False)
class Asynchronous(Way):
    """Count-triggered rounds, the asynchronous training of the GRAWA and LSGD code.

    In a round the workers take `W trigger` local steps in all, faster ones more; then all sync.
    Local steps are programs without collectives on each process's own devices, so that nobody waits
    for anybody. With `grants` each worker takes so many, in masked steps. Without, each
    process takes a step for all its workers whenever it is ready and a counter that all share
    grants one.

    A worker's batches and random numbers go by its own local steps. For the rule, and for schedules
    that go by the step, a round is `trigger` steps, in the last of which those stay that take
    more. A probe gradient is taken after the local steps.

    Attributes:
        trigger: the local steps of a worker in a round, on average, at least 1; it divides the
            run's steps.
        grants: the local steps of each worker in each round, int `[rounds, W]`; None: as many as it
            is fast, which the processes count while they run.
        patience: seconds that a process waits at a sync for the others.

    Raises:
        ValueError: for other values; by `make_advance`, if the rule sends at local steps, or syncs
            within a round.
    """

    trigger: int
    grants: np.ndarray | None = None
    patience: float = 600.0

    equal_steps = False

    def __post_init__(self):
        check_integer("Asynchronous: trigger", self.trigger, 1)
        if not self.patience > 0:
            raise ValueError(f"patience={self.patience}: allowed are seconds above 0")

    @property
    def unit(self) -> int:
        """A round."""
        return self.trigger

    def check(self, run: Run) -> None:
        """Raises a ValueError unless the rounds and the grants are those of the run."""
        if run.steps % self.trigger:
            raise ValueError(
                f"trigger={self.trigger}: allowed are integers from 1 that divide the steps, "
                f"{run.steps}"
            )
        if self.grants is None:
            return
        grants, shape = np.asarray(self.grants), (run.steps // self.trigger, run.workers.num)
        whole = grants.shape == shape and grants.dtype.kind in "iu"
        if not whole or (grants < 0).any() or not grants.any(1).all():
            raise ValueError(
                f"grants={self.grants}: allowed are the local steps of [rounds, W] = "
                f"{list(shape)}, integers from 0 and not all 0 in a round"
            )

    def make_advance(self, run: Run, traffic: Traffic, step: Step) -> Advance:
        """Compiles the local steps and the sync."""
        return _make_rounds(run, traffic, self, step)


def _make_rounds(run: Run, traffic: Traffic, way: Asynchronous, plain: Step) -> Advance:
    _check(run, traffic, way.trigger)
    feed, mine = Feed(run), _indices_here(run)
    here = Workers(len(mine), run.workers.mesh.local_mesh)
    step, sync = _make_local_step(run, here), _make_sync(run, way.trigger)
    turns: Callable[[int], Iterator[Any]] = _Counter(way)
    if way.grants is not None:
        grants = np.asarray(way.grants)
        turns = lambda number: _masks(grants[number, mine])
    none = lambda x: np.full((len(mine), *x.shape[1:]), np.nan if is_real(x) else 0, x.dtype)
    latest = {name: here.put(none(x)) for name, x in _of_local_steps(run, feed, plain).items()}
    zero = here.put(np.zeros(len(mine), np.float32))

    def advance(state, done):
        nonlocal latest
        own, steps = _here(run, state.own), np.zeros(run.workers.num, np.int64)
        steps[mine] = np.asarray(own[-1])
        latest["loss sum"] = zero
        for turn, active in enumerate(turns(done // way.trigger)):
            batch = _here(run, feed.batch(steps))
            active = np.broadcast_to(active, mine.shape)
            shared = np.int32(done + min(turn, way.trigger - 1)), state.key
            _, (own, latest) = step(shared, own, latest, here.put((mine, active)), batch)
            jax.block_until_ready(latest["loss"])
            steps[mine] += active
        end = done + way.trigger
        own, metrics = _everywhere(run, (own, latest))
        losses = [metrics.pop("loss sum")]
        probe = feed.probe(end - 1)
        step_done, (own, of_sync) = sync((state.step, state.key), own, metrics["loss"], probe)
        return Progress(end, state.after(step_done, own), metrics | of_sync, losses)

    return advance


class _Counter:
    """The turns of this process in each round, granted by a shared counter."""

    def __init__(self, way: Asynchronous):
        self._store = Store(f"jaxdist/{next(_RUNS)}")
        self._turns = way.trigger * jax.process_count()
        self._seconds = way.patience

    def __call__(self, number: int) -> Iterator[bool]:
        place = "the sync of round {}".format
        while self._store.increment(f"{place(number)}/steps") <= self._turns:
            yield True
        self._store.barrier(place(number), self._seconds)
        self._store.forget(place(number - 1))  # which all have left


def _masks(steps: np.ndarray) -> Iterator[np.ndarray]:
    """Which workers take a step, until each has taken its number of `steps`."""
    for turn in range(steps.max(initial=0)):
        yield turn < steps


def _of_local_steps(run: Run, feed: Feed, step: Step) -> dict[str, jax.ShapeDtypeStruct]:
    """The metrics of a step, `[W, ...]`, that are not the rule's."""
    start = abstract(run)
    _, metrics = jax.eval_shape(step, start, feed.shapes, None)
    of_rule = jax.eval_shape(rules.metrics, start.opt_state)
    return {name: like for name, like in metrics.items() if name not in of_rule}


def _make_local_step(run: Run, here: Workers) -> Callable:
    """Compiles a local step of the workers of this process that are active."""
    one = worker_step(run, only=("local",))

    def one_worker(shared, own, latest, who, batch):
        (step, key), (me, active) = shared, who
        new, metrics = one(step, key, me, own, batch, None)
        values = {name: metrics[name] for name in latest if name in metrics}
        values["loss sum"] = latest["loss sum"] + metrics["loss"]
        pick = lambda new, old: jnp.where(active, new, old)
        return (), jax.tree.map(pick, (new, values), (own, latest))

    return here.spmd(one_worker, donate_argnums=1)


def _make_sync(run: Run, trigger: int) -> Callable:
    """Compiles the sync at the end of a round."""
    probe_gradient = make_probe_gradient(run)

    def one_worker(shared, own, loss, probe):
        start, key = shared
        end = start + trigger
        params, model_state, opt_state, taken = own
        extra = {}
        if probe is not None:
            me = collectives.index(run.workers.axis)
            rng = jax.random.fold_in(jax.random.fold_in(key, end - 1), me)
            extra["probe_grad"] = probe_gradient(params, model_state, probe, rng)
        params, opt_state = rules.communicate(
            run.tx, opt_state, params, step=end - 1, value=loss, **extra
        )
        metrics = {**rules.metrics(opt_state), "local_steps": taken}
        return end, ((params, model_state, opt_state, taken), metrics)

    return run.workers.spmd(one_worker, donate_argnums=1)


def _indices_here(run: Run) -> np.ndarray:
    """The workers of this process."""
    every, place = np.arange(run.workers.num), run.workers.sharding
    index = jax.make_array_from_callback(every.shape, place, lambda i: every[i])
    return np.asarray(_here(run, index))


def _here(run: Run, tree: Any) -> Any:
    """This process's part of stacked arrays, on its own mesh; nothing is copied."""
    part = multihost_utils.global_array_to_host_local_array
    return jax.tree.map(lambda x: part(x, run.workers.mesh, _spec(x)), tree)


def _everywhere(run: Run, tree: Any) -> Any:
    """The stacked arrays of which every process has its part."""
    whole = multihost_utils.host_local_array_to_global_array
    return jax.tree.map(lambda x: whole(x, run.workers.mesh, _spec(x)), tree)


def _spec(x: Any) -> P:
    """How a stacked array lies on its mesh; JAX forgets the first axis on a single device."""
    return P("worker", *x.sharding.spec[1:])


def _check(run: Run, traffic: Traffic, trigger: int) -> None:
    if traffic_of(run, only=("local",)).entries:
        raise ValueError(
            f"trigger={trigger}: allowed in count-triggered rounds are rules that only communicate "
            f"at their syncs; {run.rule!r} communicates at every local step"
        )
    steps = np.arange(run.steps)
    within = traffic.pattern(steps).any(0) & ((steps + 1) % trigger != 0)
    if within.any():
        raise ValueError(
            f"trigger={trigger}: allowed are rules that only sync at multiples of the trigger; "
            f"{run.rule!r} has something to do after step {int(within.argmax()) + 1}"
        )
