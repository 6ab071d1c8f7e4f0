"""Symmetric label noise in the training set."""

import re

import jax
import numpy as np
import pytest

from jaxdist.data import ArraySource, Loader, Sampler, TokenSource, digits, shards
from jaxdist.data.label_noise import NoisyLabels, flip_labels, with_label_noise


def labels(num, classes=10):
    return np.random.default_rng(0).integers(classes, size=num).astype(np.int32)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("classes", [2, 10])
def test_exactly_the_rate_is_flipped_to_other_classes(rate, classes):
    y = labels(997, classes)
    original = y.copy()
    noisy = flip_labels(y, rate=rate, num_classes=classes, seed=3)
    np.testing.assert_array_equal(y, original)
    assert noisy.dtype == np.int32
    assert noisy.min() >= 0
    assert noisy.max() < classes
    assert (noisy != y).sum() == round(rate * 997)


def test_it_is_symmetric():
    """Every class is flipped alike, and to every other class alike (chi-square, 4 deviations)."""
    classes, num, rate = 5, 50_000, 0.4
    y = np.arange(num) % classes
    noisy = flip_labels(y, rate=rate, num_classes=classes, seed=1)
    table = np.zeros((classes, classes))
    np.add.at(table, (y, noisy), 1)
    each = num / classes
    wrong = table[~np.eye(classes, dtype=bool)]
    expected = each * rate / (classes - 1)
    chi2 = ((wrong - expected) ** 2 / expected).sum()
    assert chi2 < 20 + 4 * np.sqrt(40)
    np.testing.assert_allclose(np.diag(table), each * (1 - rate), atol=4 * np.sqrt(each * 0.24))
    positions = np.flatnonzero(noisy != y)
    assert abs(positions.mean() - num / 2) < 4 * num / np.sqrt(12 * len(positions))


def test_the_seed_decides():
    y = labels(500)
    flip = lambda rate, seed: flip_labels(y, rate=rate, num_classes=10, seed=seed)
    np.testing.assert_array_equal(flip(0.3, 7), flip(0.3, 7))
    assert (flip(0.3, 7) != flip(0.3, 8)).any()
    less, more = flip(0.2, 7), flip(0.6, 7)
    np.testing.assert_array_equal(more[less != y], less[less != y])


def test_the_test_set_and_the_images_are_left_alone():
    clean = digits()
    noisy = with_label_noise(clean, rate=0.4, seed=2)
    assert noisy.test is clean.test
    assert (noisy.input_shape, noisy.num_classes) == (clean.input_shape, clean.num_classes)
    assert (noisy.mean, noisy.std) == (clean.mean, clean.std)
    every = np.arange(len(clean.train))
    (x, y), (clean_x, clean_y) = noisy.train[every], clean.train[every]
    np.testing.assert_array_equal(x, clean_x)
    np.testing.assert_array_equal(y, noisy.train.labels)
    np.testing.assert_array_equal(noisy.train.clean.labels, clean_y)
    assert (y != clean_y).sum() == round(0.4 * len(every))
    some = np.array([5, 0, 5])
    np.testing.assert_array_equal(noisy.train[some][1], y[some])


def test_noise_of_rate_0_is_the_clean_set():
    noisy = with_label_noise(digits(), rate=0.0)
    np.testing.assert_array_equal(noisy.train.labels, digits().train.labels)


def test_shards_and_loader_take_it():
    train = with_label_noise(digits(), rate=0.5, seed=1).train
    parts = shards.dirichlet(train, 4, 0, alpha=0.3, minimum=8)
    assert sorted(np.concatenate(parts)) == list(range(len(train)))
    of_clean = shards.dirichlet(train.clean, 4, 0, alpha=0.3, minimum=8)
    expected = shards.dirichlet(digits().train, 4, 0, alpha=0.3, minimum=8)
    for mine, theirs in zip(of_clean, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    sampler = Sampler(parts, batch_size=8, seed=0)
    load = Loader(train, sampler, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    _, y = load(3)
    np.testing.assert_array_equal(y[2], train.labels[sampler.indices(2, 3)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": -0.1}, "rate=-0.1"),
        ({"rate": 1.01}, "rate=1.01"),
        ({"rate": float("nan")}, "rate=nan"),
        ({"rate": True}, "rate=True"),
        ({"num_classes": 1}, "num_classes=1"),
        ({"num_classes": 3}, "labels hold 3: allowed are integers in 0..2"),
        ({"seed": -1}, "seed=-1"),
        ({"labels": np.array([0, -2])}, "labels hold -2"),
        ({"labels": np.array([0.0, 1.0])}, "labels are float64"),
        ({"labels": np.zeros((2, 1), int)}, "labels are int64 [2, 1]"),
    ],
)
def test_bad_arguments(options, message):
    right = {"labels": np.arange(4), "rate": 0.5, "num_classes": 4, "seed": 0}
    with pytest.raises(ValueError, match=re.escape(message)):
        flip_labels(**(right | options))


def test_bad_sources():
    tokens = TokenSource(np.zeros((4, 6), np.uint8), np.arange(4))
    with pytest.raises(ValueError, match=re.escape("y of the source is [B, 5]")):
        NoisyLabels(tokens, rate=0.1, num_classes=17, seed=0)
    images = ArraySource(np.zeros((4, 2, 2), np.uint8), np.arange(4))
    with pytest.raises(ValueError, match="labels hold 3"):
        NoisyLabels(images, rate=0.1, num_classes=3, seed=0)
