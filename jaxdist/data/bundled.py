"""Bundled real data: the digits and the table that come with scikit-learn. No network, no folder.

The 1,797 images (8 x 8, 17 grey values) are the test part of the UCI set "Optical recognition of
handwritten digits". The split is fixed: with the examples in order of class and, within a class, in
the order of the file, every fifth one is a test example. This gives 1,437 for training and 360 for
testing, each class in proportion to within one example. The same writers are in both parts.
"""

import functools
import gzip
import importlib.util
from pathlib import Path
from typing import Literal

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


@functools.cache
def _load() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values `[N, 8, 8]` in 0..16, classes `[N]`, and which examples are for testing, `[N]`.

    They are read from scikit-learn's folder, as to import it takes seconds.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    folder = Path(found.submodule_search_locations[0])
    with gzip.open(folder / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    values, target = table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int)
    return values, target, _every_fifth(target)


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
