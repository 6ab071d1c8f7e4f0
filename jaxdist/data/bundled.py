"""Bundled real data: the digits and the table that come with scikit-learn. No network, no folder.

The 1,797 images (8 x 8, 17 grey values) are the test part of the UCI set "Optical recognition of
handwritten digits". The split is fixed: with the examples in order of class and, within a class, in
the order of the file, every fifth one is a test example. This gives 1,437 for training and 360 for
testing, each class in proportion to within one example. The same writers are in both parts.
"""

import dataclasses
import functools
import importlib.util
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxdist.data.sources import ArraySource, Dataset, TokenSource, TreeSource, image_dataset


def digits(
    *, size: int = 8, resize: Literal["bilinear", "nearest"] = "bilinear", channels: int = 1
) -> Dataset:
    """The bundled digits as images, 1,437 for training and 360 for testing, 10 classes.

    The grey values 0..16 are rescaled to 0..255.

    Args:
        size: side of the images in pixels, from 8; 28 or 32 for models made for larger images.
        resize: how larger images are made from the 8 x 8 ones.
        channels: 1, or 3 for models that expect colour (the same image in each).

    Raises:
        ValueError: if an option is not among the allowed values.

    Example:
        >>> from jaxdist.data import digits
        >>> dataset = digits(size=28)
        >>> dataset.input_shape, len(dataset.train), len(dataset.test)
        ((28, 28, 1), 1437, 360)
    """
    if size < 8:
        raise ValueError(f"size={size}: allowed are integers from 8, the images' own size")
    if resize not in ("bilinear", "nearest"):
        raise ValueError(f"resize={resize!r}: allowed are 'bilinear' and 'nearest'")
    if channels not in (1, 3):
        raise ValueError(f"channels={channels}: allowed are 1 and 3")
    values, labels, test = _load()
    scale = _interpolation(size, resize)
    images = np.rint(scale @ values @ scale.T * (255 / 16)).astype(np.uint8)
    images = np.repeat(images[..., None], channels, axis=-1)
    train, test = (ArraySource(images[part], labels[part]) for part in (~test, test))
    return image_dataset(train, test, num_classes=10)


def digit_sequences() -> Dataset:
    """The bundled digits as sequences of 64 grey values, row by row, for next-token prediction.

    x is tokens 0 to 62 and y tokens 1 to 63, so T = 63 and the vocabulary is 17. There is no start
    token: the first pixel is 0 in every image, so nothing is lost by not predicting it. `labels`
    are the digits, so that label-skewed shards work.

    Example:
        >>> from jaxdist.data import digit_sequences
        >>> dataset = digit_sequences()
        >>> dataset.input_shape, dataset.num_classes
        ((63,), 17)
    """
    values, labels, test = _load()
    tokens = values.reshape(len(values), 64).astype(np.uint8)
    train, test = (TokenSource(tokens[part], labels[part]) for part in (~test, test))
    return Dataset(train, test, input_shape=(63,), num_classes=17)


ATTRIBUTES = {
    "odd": (1, 3, 5, 7, 9),
    "prime": (2, 3, 5, 7),
    "at_least_five": (5, 6, 7, 8, 9),
    "closed_loop": (0, 6, 8, 9),
}
"""The digits that have each label of `digit_attributes`; a 4 counts as open."""


def digit_attributes() -> Dataset:
    """The bundled digits, each with 4 labels that it has or not: odd, prime, at least 5, a loop.

    The images and the split are those of `digits`; y is `[B, 4]` of 0 and 1, in the order of
    `ATTRIBUTES`. The labels are made from the class, and by no one who looked at the images: they
    are facts of the digit, not of how it was written.

    Example:
        >>> from jaxdist.data import digit_attributes
        >>> dataset = digit_attributes()
        >>> a_two, a_nine = (np.flatnonzero(dataset.train.labels == digit)[:1] for digit in (2, 9))
        >>> dataset.train[a_two][1].tolist(), dataset.train[a_nine][1].tolist()
        ([[0, 1, 0, 0]], [[1, 0, 1, 1]])
    """
    table = [[digit in having for having in ATTRIBUTES.values()] for digit in range(10)]
    return _relabelled(np.array(table, np.int32), num_classes=len(ATTRIBUTES))


def digit_heads() -> Dataset:
    """The bundled digits, each with two classes: the digit, and its parity (1 for odd ones).

    The images and the split are those of `digits`; y is `[B, 2]`.

    Example:
        >>> from jaxdist.data import digit_heads
        >>> dataset = digit_heads()
        >>> a_nine = np.flatnonzero(dataset.train.labels == 9)[:1]
        >>> dataset.train[a_nine][1].tolist(), dataset.heads
        ([[9, 1]], (('digit', 10), ('parity', 2)))
    """
    table = np.stack([np.arange(10), np.arange(10) % 2], 1).astype(np.int32)
    return _relabelled(table, num_classes=12, heads=(("digit", 10), ("parity", 2)))


def diabetes() -> Dataset:
    """The bundled table of 442 diabetes patients: 10 numbers each, and how far it came in a year.

    Inputs and targets have mean 0 and deviation 1 over the training part. Every fifth patient in
    order of the target is a test example: 353 for training, 89 for testing.

    Example:
        >>> from jaxdist.data import diabetes
        >>> dataset = diabetes()
        >>> dataset.input_shape, dataset.num_classes, len(dataset.train), len(dataset.test)
        ((10,), 1, 353, 89)
    """
    from sklearn.datasets import load_diabetes  # takes a second to import

    x, y = load_diabetes(return_X_y=True)
    test = _every_fifth(y)
    standard = lambda a: (a - a[~test].mean(0)) / a[~test].std(0)
    x, y = standard(x), standard(y)
    train, test = (TreeSource((x[part], y[part])) for part in (~test, test))
    return Dataset(train, test, input_shape=(10,), num_classes=1)


def _relabelled(table: np.ndarray, **fields: Any) -> Dataset:
    """`digits` with a row of the table `[10, K]` for each class, and other fields."""
    whole = digits()
    of = lambda part: TreeSource((part.images, table[part.labels]), part.labels)
    return dataclasses.replace(whole, train=of(whole.train), test=of(whole.test), **fields)


@functools.cache
def _load() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values `[N, 8, 8]` in 0..16, classes `[N]`, and which examples are for testing, `[N]`."""
    # the file that scikit-learn's load_digits reads; to import that takes longer than all else here
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise ValueError("the digits come with scikit-learn: pip install 'jaxdist[train]'")
    file = Path(package.origin).with_name("datasets") / "data" / "digits.csv.gz"
    table = np.loadtxt(file, delimiter=",")
    target = table[:, -1].astype(int)
    return table[:, :-1].reshape(-1, 8, 8), target, _every_fifth(target)


def _every_fifth(target: np.ndarray) -> np.ndarray:
    """Every fifth example in order of the target, `[N]` bool: those for testing."""
    test = np.zeros(len(target), bool)
    test[np.argsort(target, kind="stable")[::5]] = True
    return test


def _interpolation(size: int, resize: str) -> np.ndarray:
    """The matrix `[size, 8]` that resamples a row of 8 pixels, pixel centres at half integers."""
    centers = (np.arange(size) + 0.5) * 8 / size - 0.5
    if resize == "nearest":
        centers = np.floor(centers + 0.5)
    distance = np.abs(np.clip(centers, 0, 7)[:, None] - np.arange(8))
    return np.maximum(0, 1 - distance)
