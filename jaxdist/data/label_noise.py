"""Label noise: a training set some of whose labels are wrong, for studies of robustness."""

import dataclasses
import numbers

import numpy as np

from jaxdist.checks import check_integer
from jaxdist.data.sources import Dataset, Source


def flip_labels(labels: np.ndarray, *, rate: float, num_classes: int, seed: int) -> np.ndarray:
    """Symmetric label noise: a random part of the labels becomes any other class.

    Of N labels round(rate N) are chosen at random, and each becomes one of the other K - 1 classes,
    all as likely. With one seed, what a lower rate flips a higher rate flips in the same way.

    Args:
        labels: integers in 0..K-1, `[N]`.
        rate: fraction of wrong labels, in [0, 1]. Up to (K - 1) / K the right class remains the
            likeliest one.
        num_classes: K, at least 2.
        seed: decides which labels are flipped and to what; 0 or above.

    Returns:
        The labels, `[N]` of the same type.

    Raises:
        ValueError: if an argument or a label is out of range.

    Example:
        >>> flip_labels(np.zeros(8, np.int32), rate=0.25, num_classes=3, seed=0).tolist()
        [0, 0, 2, 0, 0, 0, 2, 0]
    """
    if isinstance(rate, bool) or not isinstance(rate, numbers.Real) or not 0 <= rate <= 1:
        raise ValueError(f"rate={rate}: allowed are numbers in [0, 1]")
    check_integer("num_classes", num_classes, 2)
    check_integer("seed", seed, 0)
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels are {labels.dtype} {list(labels.shape)}: allowed are integers, [N]"
        )
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if wrong.size:
        raise ValueError(f"labels hold {wrong[0]}: allowed are integers in 0..{num_classes - 1}")
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=_STREAM))
    chosen = rng.permutation(len(labels))[: round(rate * len(labels))]
    shifts = rng.integers(1, num_classes, len(labels))
    noisy = labels.astype(np.int64)
    noisy[chosen] = (noisy[chosen] + shifts[chosen]) % num_classes
    return noisy.astype(labels.dtype)


class NoisyLabels:
    """A source of labelled examples some of whose labels are wrong, as by `flip_labels`.

    The examples keep their order, so the original source, `clean`, has their true labels. Shards
    made from `clean` do not depend on the noise.

    Args:
        source: examples with one label each.
        rate: fraction of wrong labels, in [0, 1].
        num_classes: number of classes, at least 2.
        seed: decides which labels are flipped and to what; 0 or above.

    Raises:
        ValueError: as `flip_labels`, or if y is not one class per example.

    Example:
        >>> from jaxdist.data import digits
        >>> noisy = NoisyLabels(digits().train, rate=0.2, num_classes=10, seed=0)
        >>> int((noisy.labels != noisy.clean.labels).sum()), round(0.2 * len(noisy))
        (287, 287)
    """

    def __init__(self, source: Source, *, rate: float, num_classes: int, seed: int):
        _, y = source[np.zeros(1, np.int64)]
        if y.ndim != 1:
            raise ValueError(
                f"y of the source is [B, {', '.join(map(str, y.shape[1:]))}]: allowed for label "
                f"noise is one class per example, [B]"
            )
        self.clean = source
        self.labels = flip_labels(source.labels, rate=rate, num_classes=num_classes, seed=seed)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.clean[indices][0], self.labels[indices]


def with_label_noise(dataset: Dataset, *, rate: float, seed: int = 0) -> Dataset:
    """The data set with label noise in its training part; the test part is left alone.

    Args:
        dataset: images with one label each.
        rate: fraction of wrong training labels, in [0, 1].
        seed: decides which labels are flipped and to what; 0 or above.

    Returns:
        The data set whose `train` is a `NoisyLabels`.

    Raises:
        ValueError: as `NoisyLabels`.

    Example:
        >>> from jaxdist.data import digits
        >>> dataset = with_label_noise(digits(), rate=0.4)
        >>> round(float((dataset.train.labels != digits().train.labels).mean()), 2)
        0.4
    """
    train = NoisyLabels(dataset.train, rate=rate, num_classes=dataset.num_classes, seed=seed)
    return dataclasses.replace(dataset, train=train)


class FlippedLabels:
    """A source in which the labels of some examples are turned round: y becomes K - 1 - y.

    Args:
        source: examples with one label each.
        indices: of those examples.
        num_classes: K.
    """

    def __init__(self, source: Source, indices: np.ndarray, num_classes: int):
        self.clean, self.labels = source, np.array(source.labels)
        self.labels[indices] = num_classes - 1 - self.labels[indices]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.clean[indices][0], self.labels[indices]


def with_flipped_labels(dataset: Dataset, indices: np.ndarray) -> Dataset:
    """The data set with the labels of some training examples turned round: an attack on data.

    Args:
        dataset: images with one label each.
        indices: of the training examples, as the shards of bad workers.

    Returns:
        The data set whose `train` is a `FlippedLabels`.

    Example:
        >>> from jaxdist.data import digits
        >>> dataset = with_flipped_labels(digits(), np.arange(3))
        >>> (dataset.train.labels[:4] + digits().train.labels[:4]).tolist()[:3]
        [9, 9, 9]
    """
    flipped = FlippedLabels(dataset.train, indices, dataset.num_classes)
    return dataclasses.replace(dataset, train=flipped)


_STREAM = (3,)  # apart from the random numbers of shards and samplers
