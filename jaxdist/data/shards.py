"""Shards: which examples each worker trains on.

Every factory is `factory(source, workers, seed, **options) -> W index arrays`: sorted, disjoint,
and together every example exactly once.
"""

import numpy as np

from jaxdist.data.sources import Source


def iid(source: Source, workers: int, seed: int) -> list[np.ndarray]:
    """Equal random shards: a permutation of the examples cut into W parts.

    Args:
        source: the training set, N examples.
        workers: number of shards, W.
        seed: decides the permutation; 0 or above.

    Returns:
        W index arrays whose sizes differ by at most one.

    Raises:
        ValueError: if W is below 1 or above N, or the seed is negative.

    Example:
        >>> from jaxdist.data import ArraySource, shards
        >>> source = ArraySource(np.zeros((5, 2, 2, 1), np.uint8), np.arange(5))
        >>> [len(shard) for shard in shards.iid(source, 2, seed=0)]
        [3, 2]
    """
    rng = _generator(len(source), workers, seed, minimum=1)
    return [np.sort(part) for part in np.array_split(rng.permutation(len(source)), workers)]


def dirichlet(
    source: Source, workers: int, seed: int, *, alpha: float = 0.5, minimum: int = 1
) -> list[np.ndarray]:
    """Label-skewed shards of unequal sizes: each class is divided in Dirichlet proportions.

    For each class c in turn draw q ~ Dirichlet(alpha, ..., alpha) over the workers, put q_w = 0 for
    each worker that already holds N / W examples or more, and divide the class in proportion to q.
    Then, while a worker holds fewer than `minimum`, it takes a random example of the largest shard.

    Args:
        source: the training set, N labelled examples.
        workers: number of shards, W.
        seed: decides every draw; 0 or above.
        alpha: concentration; small values give each worker few classes, large ones all of them.
        minimum: the fewest examples that a shard may hold; at least the batch size for training.

    Returns:
        W index arrays.

    Raises:
        ValueError: if alpha is not a positive finite number, W * minimum exceeds N, or the source
            has no labels.

    Example:
        >>> from jaxdist.data import ArraySource, shards
        >>> source = ArraySource(np.zeros((9, 2, 2, 1), np.uint8), np.arange(9) % 3)
        >>> sum(len(shard) for shard in shards.dirichlet(source, 2, seed=0, alpha=0.1))
        9

    Reference:
        Li et al. 2022, "Federated learning on non-IID data silos", partition "noniid-labeldir":
        READ in the source code of NIID-Bench, which draws everything again until each shard holds
        10 examples; the repair of small shards instead, which always ends, is ours.
    """
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha={alpha}: allowed are finite numbers above 0")
    rng = _generator(len(source), workers, seed, minimum)
    labels = source.labels
    shards = [np.empty(0, np.int64) for _ in range(workers)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        is_open = np.array([len(shard) * workers < len(labels) for shard in shards])
        share = np.where(is_open, rng.dirichlet(np.full(workers, alpha)), 0.0)
        if share.sum() == 0:
            share = is_open.astype(float)
        cuts = np.rint(np.cumsum(share / share.sum())[:-1] * len(members)).astype(int)
        parts = np.split(members, cuts)
        shards = [np.concatenate(pair) for pair in zip(shards, parts, strict=True)]
    _fill(shards, minimum, rng)
    return [np.sort(shard) for shard in shards]


def _fill(shards: list[np.ndarray], minimum: int, rng: np.random.Generator) -> None:
    """Moves random examples from the largest shard until each holds `minimum`."""
    for small in range(len(shards)):
        while len(shards[small]) < minimum:
            large = max(range(len(shards)), key=lambda worker: len(shards[worker]))
            taken = rng.integers(len(shards[large]))
            shards[small] = np.append(shards[small], shards[large][taken])
            shards[large] = np.delete(shards[large], taken)


def _generator(num_examples: int, workers: int, seed: int, minimum: int) -> np.random.Generator:
    if workers < 1:
        raise ValueError(f"workers={workers}: allowed are integers from 1")
    if minimum < 1:
        raise ValueError(f"minimum={minimum}: allowed are integers from 1")
    if workers * minimum > num_examples:
        raise ValueError(
            f"workers={workers} with minimum={minimum} need {workers * minimum} examples: "
            f"allowed are at most the {num_examples} of the training set"
        )
    if seed < 0:
        raise ValueError(f"seed={seed}: allowed are integers from 0")
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
