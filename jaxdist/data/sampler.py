"""Samplers: which examples a worker's batch holds at a step.

A sampler is a pure function of (seed, worker, step): nothing to save in a checkpoint, and any
process can compute any worker's batch at any step, in any order.
"""

from collections.abc import Sequence

import numpy as np


class Sampler:
    """Epochs over shards: in each epoch a worker sees its shard once, in a new random order.

    With n examples in the worker's shard and m = n // batch_size, its batch at step t is the part
    t mod m of the permutation of epoch t // m; the n mod batch_size examples at the end of a
    permutation are dropped. Workers with larger shards have longer epochs.

    Args:
        shards: one array of example indices per worker.
        batch_size: examples per worker and step, B.
        seed: decides the permutations; 0 or above.

    Raises:
        ValueError: if the batch exceeds a shard, or an argument is out of range.

    Example:
        >>> sampler = Sampler([np.arange(4), np.arange(4, 10)], batch_size=2, seed=0)
        >>> sampler.steps_per_epoch
        2
        >>> sorted(np.concatenate([sampler.indices(0, 0), sampler.indices(0, 1)]).tolist())
        [0, 1, 2, 3]
    """

    def __init__(self, shards: Sequence[np.ndarray], batch_size: int, seed: int):
        if not len(shards):
            raise ValueError("shards is empty: allowed is one array of indices per worker, from 1")
        _check(batch_size, seed)
        for worker, shard in enumerate(shards):
            if batch_size > len(shard):
                raise ValueError(
                    f"batch_size={batch_size} exceeds the shard of worker {worker}, "
                    f"{len(shard)} examples: allowed are 1 to {min(map(len, shards))}, "
                    "the smallest shard"
                )
        self.shards = [np.asarray(shard) for shard in shards]
        self.batch_size = batch_size
        self.seed = seed
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}

    @property
    def workers(self) -> int:
        """Number of workers, W."""
        return len(self.shards)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which the W workers together draw about as many examples as the shards hold."""
        return sum(map(len, self.shards)) // (self.workers * self.batch_size)

    def indices(self, worker: int, step: int) -> np.ndarray:
        """The examples of a worker's batch at a step, `[B]`."""
        epoch, batch = divmod(step, len(self.shards[worker]) // self.batch_size)
        return self._permutation(worker, epoch)[batch * self.batch_size :][: self.batch_size]

    def _permutation(self, worker: int, epoch: int) -> np.ndarray:
        cached = self._epochs.get(worker)
        if cached is None or cached[0] != epoch:
            rng = _generator(self.seed, 1, worker, epoch)
            cached = epoch, rng.permutation(self.shards[worker])
            self._epochs[worker] = cached
        return cached[1]


class UniformSampler:
    """Batches from the whole training set: at each step each worker draws its own random sample.

    Within a batch no example is drawn twice. It serves the probe batches of GRAWA, whose gradient
    norms compare the workers on data that does not depend on their shards.

    Args:
        num_examples: size of the training set, N.
        workers: number of workers, W.
        batch_size: examples per worker and step, B.
        seed: decides the samples; 0 or above. Independent of a `Sampler` with the same seed.

    Raises:
        ValueError: if the batch exceeds the training set, or an argument is out of range.

    Example:
        >>> UniformSampler(100, workers=2, batch_size=4, seed=0).indices(worker=1, step=7).shape
        (4,)
    """

    def __init__(self, num_examples: int, workers: int, batch_size: int, seed: int):
        if workers < 1:
            raise ValueError(f"workers={workers}: allowed are integers from 1")
        _check(batch_size, seed)
        if batch_size > num_examples:
            raise ValueError(
                f"batch_size={batch_size}: allowed are 1 to {num_examples}, the whole training set"
            )
        self.num_examples = num_examples
        self.workers = workers
        self.batch_size = batch_size
        self.seed = seed

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which the W workers together draw about as many examples as the set holds."""
        return max(1, self.num_examples // (self.workers * self.batch_size))

    def indices(self, worker: int, step: int) -> np.ndarray:
        """The examples of a worker's batch at a step, `[B]`."""
        rng = _generator(self.seed, 2, worker, step)
        return rng.choice(self.num_examples, self.batch_size, replace=False)


def _check(batch_size: int, seed: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: allowed are integers from 1")
    if seed < 0:
        raise ValueError(f"seed={seed}: allowed are integers from 0")


def _generator(seed: int, *stream: int) -> np.random.Generator:
    """A generator of its own for each stream, independent of the others with the same seed."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=stream))
