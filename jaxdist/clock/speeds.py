"""How long each worker computes at each of its steps, the same whatever order one asks in."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from jaxdist.checks import check_above, check_integer, check_least

_BLOCK = 1024  # steps whose random numbers are drawn together


@dataclasses.dataclass(frozen=True)
class Speeds:
    """The seconds of compute of W workers at their own steps 0, 1, ...

    Attributes:
        num_workers: W.
        of: a function of a worker and of its steps, an integer array, to their seconds: an array of
            the same shape, above 0. It must be pure.

    Raises:
        ValueError: if `num_workers` < 1.

    Example:
        >>> warming_up = Speeds(2, lambda worker, steps: 1.0 + 1.0 / (1 + steps))
        >>> warming_up.seconds(0, [0, 1, 3]).tolist()
        [2.0, 1.5, 1.25]
    """

    num_workers: int
    of: Callable[[int, np.ndarray], np.ndarray]

    def __post_init__(self):
        check_integer("num_workers", self.num_workers, 1)

    def seconds(self, worker: int, step: ArrayLike) -> np.ndarray:
        """Seconds of compute of `worker` at its own step(s) `step`, in the shape of `step`.

        Raises:
            ValueError: if there is no such worker, a step is negative or no integer, or the time is
                not finite and above 0.
        """
        self.check_worker(worker)
        steps = np.asarray(step)
        if steps.dtype.kind not in "iu" or (steps < 0).any():
            raise ValueError(f"step={step!r}: allowed are integers from 0")
        times = np.asarray(self.of(worker, steps), np.float64)
        wrong = ~((times > 0) & (times < np.inf))
        if wrong.any():
            at, time = steps[wrong][0], times[wrong][0]
            raise ValueError(
                f"worker {worker} takes {time} seconds at step {at}: allowed are finite numbers "
                f"above 0"
            )
        return times

    def table(self, steps: int) -> np.ndarray:
        """The seconds of all workers at their first `steps` steps: `[steps, W]`."""
        every = np.arange(steps)
        return np.stack([self.seconds(i, every) for i in range(self.num_workers)], 1)

    def check_worker(self, worker: int) -> None:
        """Raises a ValueError unless there is such a worker."""
        if worker not in range(self.num_workers):
            raise ValueError(f"worker={worker}: allowed are 0 to {self.num_workers - 1}")


def measured(times: ArrayLike) -> Speeds:
    """Times that were measured, repeated from their beginning when they end.

    t_i(n) = times[i, n mod N]

    Args:
        times: `[W, N]`, seconds.

    Raises:
        ValueError: if `times` is no such array, or a time is not finite and above 0.

    Example:
        >>> measured([[1.0, 2.0], [3.0, 3.0]]).seconds(0, [0, 1, 2, 3]).tolist()
        [1.0, 2.0, 1.0, 2.0]
    """
    times = np.array(times, np.float64)
    if times.ndim != 2 or not times.size:
        raise ValueError(f"times of shape {list(times.shape)}: allowed is [workers, steps]")
    speeds = Speeds(len(times), lambda worker, steps: times[worker, steps % times.shape[1]])
    speeds.table(times.shape[1])  # names what is wrong
    return speeds


def constant(times: ArrayLike) -> Speeds:
    """Every worker always takes its own time.

    Args:
        times: `[W]`, seconds a step.

    Raises:
        ValueError: if `times` is no such array, or a time is not finite and above 0.

    Example:
        >>> float(constant([1.0, 3.0]).seconds(1, 7))
        3.0
    """
    return measured(np.asarray(times, np.float64)[..., None])


def log_normal(mean: ArrayLike, sigma: float, seed: int) -> Speeds:
    """Random times, independent from step to step and worker to worker.

    t_i(n) = mean_i exp(sigma z - sigma^2 / 2),  z standard normal, so that E t_i = mean_i

    Args:
        mean: `[W]`, seconds a step on average.
        sigma: the standard deviation of log t, at least 0; 0.1 is about 10% of the mean.
        seed: of the random numbers, at least 0.

    Raises:
        ValueError: if a mean is not finite and above 0, or `sigma` or `seed` outside its range.

    Example:
        >>> speeds = log_normal([1.0] * 4, sigma=0.2, seed=0)
        >>> round(float(speeds.seconds(3, range(4096)).mean()), 2)
        1.0
    """
    means = constant(mean)
    check_least("sigma", sigma)
    check_integer("seed", seed, 0)

    def of(worker, steps):
        z = _normal(seed, worker, steps)
        return means.seconds(worker, steps) * np.exp(sigma * z - sigma**2 / 2)

    return Speeds(means.num_workers, of)


def with_stragglers(speeds: Speeds, factors: Mapping[int, float]) -> Speeds:
    """Some workers take a multiple of their time at every step.

    Args:
        speeds: of all workers.
        factors: for each straggler how many times as long it takes, finite and above 0.

    Raises:
        ValueError: if there is no such worker, or a factor is outside its range.

    Example:
        >>> with_stragglers(constant([1.0, 1.0]), {1: 3.0}).table(1).tolist()
        [[1.0, 3.0]]
    """
    factors = dict(factors)
    for worker, factor in factors.items():
        speeds.check_worker(worker)
        check_above(f"the factor of worker {worker}", factor)
    of = lambda worker, steps: speeds.seconds(worker, steps) * factors.get(worker, 1.0)
    return Speeds(speeds.num_workers, of)


def with_pauses(speeds: Speeds, pauses: Iterable[tuple[int, int, float]]) -> Speeds:
    """Some workers stand still for a while at some of their steps.

    Args:
        speeds: of all workers.
        pauses: (worker, its step, by how many seconds that step is longer); those of one step add.

    Raises:
        ValueError: if there is no such worker, a step is negative, or the seconds are not finite
            and above 0.

    Example:
        >>> with_pauses(constant([1.0, 1.0]), [(0, 2, 5.0)]).seconds(0, range(4)).tolist()
        [1.0, 1.0, 6.0, 1.0]
    """
    pauses = tuple(pauses)
    for worker, step, seconds in pauses:
        speeds.check_worker(worker)
        check_integer(f"the step at which worker {worker} pauses", step, 0)
        check_above(f"the pause of worker {worker} at step {step}", seconds)

    def of(worker, steps):
        extra = [(steps == step) * seconds for i, step, seconds in pauses if i == worker]
        return sum(extra, speeds.seconds(worker, steps))

    return Speeds(speeds.num_workers, of)


def _normal(seed: int, worker: int, steps: np.ndarray) -> np.ndarray:
    """Standard normal numbers that depend on (seed, worker, step) alone."""
    block, at = np.divmod(steps, _BLOCK)
    z = np.empty(steps.shape)
    for b in np.unique(block):
        drawn = np.random.default_rng([seed, worker, int(b)]).standard_normal(_BLOCK)
        z[block == b] = drawn[at[block == b]]
    return z
