"""Evaluation on the test set: of the mean of the workers, of each worker, and of the centre."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxdist import collectives, models, rules, stacked
from jaxdist.data import Loader
from jaxdist.training.run import Run
from jaxdist.training.state import TrainState, initial_model
from jaxdist.trees import wide
from jaxdist.workers import unroll

CHUNK = 256
"""Test examples that a worker evaluates at a time, or a training microbatch if that is more."""

REESTIMATE_STEPS = 100
"""Training batches of each worker, at most one epoch, that BatchNorm is re-estimated from."""


def candidates(params: Any, opt_state: Any) -> dict[str, Any]:
    """The parameters that stand for all workers.

    Args:
        params: the workers' parameters, `[W, ...]`.
        opt_state: their optimizer and rule states, `[W, ...]`.

    Returns:
        "mean": the uniform mean of the workers that are finite; "center", if the rule keeps one.
    """
    points = {"mean": stacked.mean(params)}
    if (center := rules.center(opt_state)) is not None:
        points["center"] = stacked.mean(center)
    return points


def make_reestimate(run: Run) -> Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]:
    """Compiles what re-estimates the candidates' BatchNorm statistics.

    Args:
        run: the run.

    Returns:
        A function of the candidates' parameters and any statistics `[W, ...]`, by name. It gives
        those of the first training batches of all workers, the same for each.
    """
    workers, num, task = run.workers, run.workers.num, run.task

    def refresh(shared, statistics, batch):
        """Takes one more training batch into the candidates' BatchNorm statistics."""
        whole, count = shared
        return (), {
            name: models.reestimate(task, params, statistics[name], batch, count)
            for name, params in whole.items()
        }

    refresh = workers.spmd(refresh)
    pool = jax.jit(lambda s: stacked.replicate(_pool(s), num), out_shardings=workers.sharding)

    def reestimate(whole, statistics):
        load = Loader(run.dataset.train, run.sampler, run.batch_sharding)
        for i in range(min(REESTIMATE_STEPS, run.sampler.steps_per_epoch)):
            _, statistics = refresh((whole, i), statistics, load(i))
            jax.block_until_ready(statistics)
        return pool(statistics)

    return reestimate


def programs(run: Run) -> tuple[Callable, Callable]:
    """Compiles the two programs of an evaluation.

    Returns:
        `prepare(params, model_state, opt_state)`, which gives ((the candidates, the consensus
        distance), (their statistics, sums that are zero)), and `score((candidates, chunk), (params,
        model_state), statistics, sums)`, which adds a chunk of the test set to the sums; both of
        all workers.
    """
    workers, num, task = run.workers, run.workers.num, run.task
    zeros = jax.tree.map(lambda x: jnp.zeros((num, *x.shape), x.dtype), _sums(run))

    def prepare(params, model_state, opt_state):
        whole = candidates(params, opt_state)
        chex.assert_trees_all_equal_shapes(whole["mean"], *whole.values())
        average = stacked.replicate(stacked.mean(model_state), num) if model_state else {}
        statistics = average
        if run.batch_norm == "local":
            finite = lambda own, other: jnp.where(jnp.isfinite(own), own, other)
            statistics = jax.tree.map(finite, model_state, average)
        shared = whole, stacked.consensus_distance(params)
        totals = dict.fromkeys(["own", *whole], zeros)
        return shared, (dict.fromkeys(whole, statistics), totals)

    def forward(params, model_state, batch, real):
        return _summed(task.measure(params, model_state, batch), real)

    if run.local == "unroll":
        forward = unroll(forward)

    def score(shared, own, statistics, totals):
        whole, chunk = shared
        me = collectives.index(workers.axis)
        part = jax.tree.map(lambda a: a.reshape(num, -1, *a.shape[1:])[me], chunk)
        batch, real = chunk
        scores = {"own": forward(own[0], own[1], batch, real)}
        for name, params in whole.items():
            scores[name] = forward(params, statistics[name], part[0], part[1])
        return (), jax.tree.map(jnp.add, totals, scores)

    places = workers.replicated, workers.sharding
    return jax.jit(prepare, out_shardings=places), workers.spmd(score, donate_argnums=3)


def make_evaluate(run: Run) -> Callable[[TrainState], dict[str, Any]]:
    """Compiles the evaluation of a run's state.

    Each worker evaluates its own parameters, with its own BatchNorm statistics, on the whole test
    set, and on its part of it the candidates: the uniform mean of the workers that are finite, and
    the centre if the rule keeps one, with the statistics that `run.batch_norm` asks for.

    Args:
        run: the run.

    Returns:
        A function of the state that gives "test_<name>" of the mean for each number that the task
        reports, "consensus_distance", and of its headline what each worker has (a list of W, as
        "worker_accuracies") and, with a centre, what that has ("center_accuracy").
    """
    workers, num, task = run.workers, run.workers.num, run.task
    prepare, score = programs(run)
    reestimate = make_reestimate(run)
    gather = jax.jit(lambda totals: totals, out_shardings=workers.replicated)

    def evaluate(state):
        own = (state.params, state.model_state)
        (whole, distance), (statistics, totals) = prepare(*own, state.opt_state)
        if run.batch_norm == "reestimate" and state.model_state:
            statistics = reestimate(whole, statistics)
        for chunk in _chunks(run):
            _, totals = score((whole, chunk), own, statistics, totals)
            jax.block_until_ready(totals)  # see "CPU devices" in the README
        count = len(run.dataset.test)
        means = jax.tree.map(lambda a: np.asarray(a, np.float64) / count, gather(totals))
        headline = task.headline
        of = lambda means: task.report(means, count)[headline.name]
        added = lambda a: functools.reduce(np.add, a)
        whole_means = {name: jax.tree.map(added, means[name]) for name in whole}
        reported = task.report(whole_means["mean"], count)
        result: dict[str, Any] = {f"test_{name}": float(x) for name, x in reported.items()}
        each = [jax.tree.map(lambda a, i=i: a[i], means["own"]) for i in range(num)]
        result[headline.workers] = [float(of(own)) for own in each]
        result["consensus_distance"] = float(np.asarray(distance))
        if "center" in whole:
            result[headline.center] = float(of(whole_means["center"]))
        return result

    return evaluate


def evaluated(run: Run) -> list[str]:
    """The names of the single numbers that an evaluation gives, without computing any."""
    means = jax.tree.map(lambda x: np.ones(x.shape), _sums(run))
    task = run.task
    names = [f"test_{name}" for name in task.report(means, 1)] + ["consensus_distance"]
    opt_state = jax.eval_shape(lambda: run.tx.init(initial_model(run)[0]))
    return names + [task.headline.center] * (rules.center(opt_state) is not None)


def _sums(run: Run) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of what is summed over the test set."""
    batch = run.dataset.test[np.zeros(1, np.int64)]
    params, state = jax.eval_shape(lambda: initial_model(run))
    of = lambda *args: _summed(run.task.measure(*args), np.ones(1, bool))
    return jax.eval_shape(of, params, state, batch)


def _summed(measured: dict[str, jax.Array], real: jax.Array | np.ndarray) -> dict[str, jax.Array]:
    """The sums over the examples that are real: of integers in int32, else in float32 or wider."""
    for name, x in measured.items():
        if jnp.shape(x)[:1] != real.shape:
            raise ValueError(
                f"the task's measure {name!r} of shape {list(jnp.shape(x))} for {len(real)} "
                f"examples: allowed is one row for each, [B, ...]"
            )

    def one(x):
        x = x.astype(jnp.promote_types(x.dtype, jnp.int32)) if x.dtype.kind in "biu" else wide(x)
        return jnp.where(real.reshape(-1, *[1] * (x.ndim - 1)), x, 0).sum(0, dtype=x.dtype)

    return jax.tree.map(one, measured)


def chunk_shapes(run: Run) -> tuple[Any, jax.ShapeDtypeStruct]:
    """What a chunk (batch, real) of the test set looks like, on all devices."""
    size, place = _chunk_size(run), run.workers.replicated
    one = jax.tree.map(np.asarray, run.dataset.test[np.zeros(1, np.int64)])
    of = lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype, sharding=place)
    return jax.tree.map(of, one), jax.ShapeDtypeStruct((size,), bool, sharding=place)


def _chunk_size(run: Run) -> int:
    num = run.workers.num
    most = max(CHUNK, run.batch_size // run.microbatches)
    return num * -(-min(len(run.dataset.test), most) // num)


def _chunks(run: Run) -> Iterator[tuple[Any, np.ndarray]]:
    """The test set in chunks (batch, real) of one size that W divides; the last one is padded."""
    source, size = run.dataset.test, _chunk_size(run)
    for start in range(0, len(source), size):
        index = np.arange(start, start + size)
        real = index < len(source)
        yield source[np.where(real, index, 0)], real


def _pool(statistics: Any) -> Any:
    """BatchNorm statistics of all the workers' examples from those of each, `[W, ...]`.

    mean = mean_i mean_i;  var = mean_i var_i + mean_i (mean_i - mean)^2
    """
    if not isinstance(statistics, dict):
        return statistics.mean(0)
    if statistics.keys() != {"mean", "var"}:
        return {name: _pool(child) for name, child in statistics.items()}
    mean, var = statistics["mean"], statistics["var"]
    return {"mean": mean.mean(0), "var": var.mean(0) + mean.var(0)}
