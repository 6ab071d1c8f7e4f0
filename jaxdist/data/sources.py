"""Sources and data sets: what every loader of data returns.

A source gives examples by index, in numpy, and knows nothing of workers, steps or devices.
"""

import dataclasses
from typing import Any, Protocol

import jax
import numpy as np

_CHUNK = 256  # images at a time in one pass over a whole source


class Source(Protocol):
    """Examples by index: `source[indices]` is a batch, any tree of arrays `[B, ...]`.

    The tasks of `jaxdist.tasks` take pairs (x, y). For images x is uint8 `[B, H, W, C]` and y int32
    `[B]`; for tokens both are int32 `[B, T]`; for tables x is float32 `[B, D]`.
    """

    def __len__(self) -> int:
        """Number of examples, N."""

    def __getitem__(self, indices: np.ndarray) -> Any:
        """The batch of the examples at the integer array `indices`, `[B]`."""

    @property
    def labels(self) -> np.ndarray:
        """The class of each example, `[N]` int32: what label-skewed shards are made from."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A training and a test source, and what a model needs to know of them.

    Attributes:
        train: the training examples.
        test: the test examples.
        input_shape: shape of one x: (H, W, C) for images, (T,) for tokens, (D,) for tables.
        num_classes: number of classes, the size of the vocabulary, or of the numbers to predict.
        mean: mean of the training pixels in [0, 1], per channel; () where nothing is normalised.
        std: their standard deviation, per channel; () as well.
        heads: the name and the number of classes of each column of y `[B, H]`, where an example has
            several classes; their sum is `num_classes`.

    Raises:
        ValueError: if images in memory have labels above the classes, or the test examples have
            labels that no training example has, or the heads have other classes together.
    """

    train: Source
    test: Source
    input_shape: tuple[int, ...]
    num_classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    heads: tuple[tuple[str, int], ...] = ()

    def __post_init__(self):
        if self.heads and (total := sum(dict(self.heads).values())) != self.num_classes:
            raise ValueError(
                f"heads have {total} classes together: allowed is num_classes, {self.num_classes}"
            )
        if not all(isinstance(part, ArraySource) for part in (self.train, self.test)):
            return
        top = int(self.train.labels.max())
        if top >= self.num_classes:
            raise ValueError(
                f"labels hold {top}: allowed are those below {self.num_classes} classes"
            )
        if (unseen := np.setdiff1d(self.test.labels, self.train.labels)).size:
            raise ValueError(
                f"test labels hold {', '.join(map(str, unseen[:8].tolist()))}, which no training "
                f"example has: allowed are classes that can be learned"
            )


class ArraySource:
    """Images and labels in memory.

    Args:
        images: uint8, `[N, H, W, C]` or `[N, H, W]`.
        labels: integers from 0, `[N]` or `[N, 1]`.

    Raises:
        ValueError: if a shape, a type or the lengths do not fit, or there is no example.

    Example:
        >>> source = ArraySource(np.zeros((3, 8, 8), np.uint8), np.arange(3))
        >>> x, y = source[np.array([2, 0])]
        >>> x.shape, y.tolist()
        ((2, 8, 8, 1), [2, 0])
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
            raise ValueError(
                f"images are {images.dtype} {list(images.shape)}: "
                "allowed are uint8 [N, H, W] or [N, H, W, C], from one example"
            )
        num = len(images)
        if labels.shape not in ((num,), (num, 1)) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"labels are {labels.dtype} {list(labels.shape)} for {num} images: "
                "allowed is one integer per image"
            )
        if labels.min() < 0:
            raise ValueError(f"labels hold {labels.min()}: allowed are integers from 0")
        self.images = images if images.ndim == 4 else images[..., None]
        self.labels = labels.reshape(num).astype(np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.images[indices], self.labels[indices]


class TokenSource:
    """Sequences for next-token prediction: from T + 1 tokens, x is the first T, y the last T.

    Args:
        sequences: uint8 tokens, `[N, T + 1]`; kept as they are, a view of a larger array is fine.
        labels: the class of each sequence, `[N]`, where there is one.

    Raises:
        ValueError: if the sequences are no such array, or there is not one label for each.

    Example:
        >>> x, y = TokenSource(np.arange(6, dtype=np.uint8).reshape(2, 3))[np.array([1])]
        >>> x.tolist(), y.tolist()
        ([[3, 4]], [[4, 5]])
    """

    def __init__(self, sequences: np.ndarray, labels: np.ndarray | None = None):
        if sequences.ndim != 2 or sequences.shape[1] < 2:
            raise ValueError(
                f"sequences are {list(sequences.shape)}: allowed is [N, T + 1], T >= 1"
            )
        if labels is not None and labels.shape != (num := sequences.shape[:1]):
            raise ValueError(
                f"labels are {list(labels.shape)}: allowed is one a sequence, {list(num)}"
            )
        self.sequences = sequences
        self._labels = labels

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tokens = self.sequences[indices].astype(np.int32)
        return tokens[:, :-1], tokens[:, 1:]

    @property
    def labels(self) -> np.ndarray:
        """The class of each sequence, `[N]` int32.

        Raises:
            ValueError: if the sequences have none, as those of a text.
        """
        return _given(self._labels)


class TreeSource:
    """Any tree of arrays in memory, of which an example is a row of each.

    Args:
        tree: arrays `[N, ...]`, as (x, y) or {"image": ..., "boxes": ...}; float64 becomes float32.
        labels: the class of each example, `[N]`, where there is one.

    Raises:
        ValueError: if there is no array, no example, or the lengths differ.

    Example:
        >>> source = TreeSource({"x": np.ones((3, 2)), "weight": np.arange(3.0)})
        >>> batch = source[np.array([2, 0])]
        >>> batch["x"].shape, batch["weight"].tolist()
        ((2, 2), [2.0, 0.0])
    """

    def __init__(self, tree: Any, labels: np.ndarray | None = None):
        narrow = lambda x: x.astype(np.float32) if x.dtype == np.float64 else x
        self.tree = jax.tree.map(lambda x: narrow(np.asarray(x)), tree)
        self._labels = labels
        lengths = {x.shape[:1] for x in jax.tree.leaves(self.tree)}
        if labels is not None:
            lengths.add(np.shape(labels)[:1])
        if len(lengths) != 1 or lengths & {(), (0,)}:
            raise ValueError(
                f"tree has leaves of leading axes {sorted(lengths)}: allowed is one N from 1"
            )

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.tree)[0])

    def __getitem__(self, indices: np.ndarray) -> Any:
        return jax.tree.map(lambda x: x[indices], self.tree)

    @property
    def labels(self) -> np.ndarray:
        """The class of each example, `[N]` int32.

        Raises:
            ValueError: if none were given.
        """
        return _given(self._labels)


def image_dataset(
    train: Source, test: Source, num_classes: int, *, sample: int | None = None
) -> Dataset:
    """A data set of images, with the mean and deviation of its training pixels.

    mean = sum(p) / n and std = sqrt(sum(p^2) / n - mean^2) per channel over the pixels p in [0, 1],
    from exact integer sums; the std of a constant channel is set to 1.

    Args:
        train: the training images.
        test: the test images.
        num_classes: number of classes.
        sample: take the statistics from this many evenly spaced images instead of from all.

    Raises:
        ValueError: if training and test images differ in shape.
    """
    first = np.zeros(1, np.int64)
    shape, test_shape = train[first][0].shape[1:], test[first][0].shape[1:]
    if test_shape != shape:
        raise ValueError(f"test images are {test_shape}: allowed is the training shape, {shape}")
    count = min(len(train), sample or len(train))
    indices = np.linspace(0, len(train) - 1, count).round().astype(np.int64)
    total, squares = np.zeros(shape[-1], np.int64), np.zeros(shape[-1], np.int64)
    for start in range(0, count, _CHUNK):
        pixels, _ = train[indices[start : start + _CHUNK]]
        total += pixels.sum((0, 1, 2), dtype=np.int64)
        squares += np.square(pixels, dtype=np.uint16).sum((0, 1, 2), dtype=np.int64)
    num = count * shape[0] * shape[1]
    mean = total / num / 255
    std = np.sqrt(np.maximum(squares / num / 255**2 - mean**2, 0))
    std = np.where(std < 1e-6, 1.0, std)
    return Dataset(train, test, shape, num_classes, tuple(mean.tolist()), tuple(std.tolist()))


def _given(labels: np.ndarray | None) -> np.ndarray:
    if labels is None:
        raise ValueError("this data set has no labels: allowed are shards that need none (iid)")
    return np.asarray(labels).astype(np.int32)
