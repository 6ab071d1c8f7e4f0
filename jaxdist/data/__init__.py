"""Data: sources of examples, shards, samplers, augmentation and the loader.

`DATASETS` and `SHARDS` are the tables that the command line, the tests and the docs read. A data
set is one row in `DATASETS`: a factory of keyword options that returns a `Dataset`.
"""

from collections.abc import Callable

import numpy as np

from jaxdist.data import shards
from jaxdist.data.augment import make_augment, normalize
from jaxdist.data.bundled import (
    diabetes,
    digit_attributes,
    digit_heads,
    digit_sequences,
    digits,
)
from jaxdist.data.files import idx, npz, text
from jaxdist.data.label_noise import (
    FlippedLabels,
    NoisyLabels,
    flip_labels,
    with_flipped_labels,
    with_label_noise,
)
from jaxdist.data.loader import Loader
from jaxdist.data.sampler import Sampler, UniformSampler
from jaxdist.data.sources import (
    ArraySource,
    Dataset,
    Source,
    TokenSource,
    TreeSource,
    image_dataset,
)
from jaxdist.data.tfds import tfds

DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "digit_sequences": digit_sequences,
    "digit_attributes": digit_attributes,
    "digit_heads": digit_heads,
    "diabetes": diabetes,
    "idx": idx,
    "npz": npz,
    "tfds": tfds,
    "text": text,
}
"""Data sets by name: `factory(**options) -> Dataset`."""

SHARDS: dict[str, Callable[..., list[np.ndarray]]] = {
    "iid": shards.iid,
    "dirichlet": shards.dirichlet,
}
"""Ways to divide a training set among workers: `factory(source, workers, seed, **options)`."""

__all__ = [
    "DATASETS",
    "SHARDS",
    "ArraySource",
    "Dataset",
    "FlippedLabels",
    "Loader",
    "NoisyLabels",
    "Sampler",
    "Source",
    "TokenSource",
    "TreeSource",
    "UniformSampler",
    "diabetes",
    "digit_attributes",
    "digit_heads",
    "digit_sequences",
    "digits",
    "flip_labels",
    "idx",
    "image_dataset",
    "make_augment",
    "normalize",
    "npz",
    "shards",
    "text",
    "tfds",
    "with_flipped_labels",
    "with_label_noise",
]
