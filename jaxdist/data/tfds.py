"""Data sets of tensorflow-datasets, read at random without TensorFlow.

A set is prepared once, in the format array_record, by a command that `tfds` names when it does not
find the set. Most sets of images need TensorFlow for it: `pip install "jaxdist[prepare]"`. ImageNet
must first be downloaded by hand, to DIR/downloads/manual.
"""

import difflib
import functools
import io
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxdist.data.sources import ArraySource, Dataset, image_dataset

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names, by number of channels
_FORMATS = ("BMP", "GIF", "JPEG", "PNG")  # for others Pillow may run programs


def tfds(
    *,
    name: str,
    data_dir: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    image_key: str = "image",
    label_key: str = "label",
    size: int | None = None,
    crop_fraction: float = 0.875,
    in_memory: bool = True,
) -> Dataset:
    """Any prepared set of tensorflow-datasets with an image and a class label.

    Prepare it once with (all on one line):
    `python -c "import tensorflow_datasets as tfds; tfds.builder('NAME', data_dir='DIR',
    file_format='array_record').download_and_prepare()"`.

    Args:
        name: the set, such as mnist, cifar10 or imagenet2012; also "name/config:version".
        data_dir: where it was prepared; None is $TFDS_DATA_DIR, or else ~/tensorflow_datasets.
        train_split: the training examples, such as "train" or "train[:90%]".
        test_split: the test examples ("validation" for imagenet2012).
        image_key: the feature that is the image.
        label_key: the feature that is the class.
        size: side in pixels that each image is brought to: of its central square, the middle
            crop_fraction is resized. None keeps the images as they are; they must have one shape.
        crop_fraction: share of the shorter side that is kept, above 0 and at most 1.
        in_memory: decode everything at the start (small sets), or each example when it is read, by
            a pool of threads (ImageNet); then mean and std come from 1,024 training images.

    Raises:
        ValueError: if the set is unknown or not prepared, lacks a split or a feature, or an option
            is out of range.
    """
    if size is not None and size < 1:
        raise ValueError(f"size={size}: allowed are integers from 1, or None")
    if not 0 < crop_fraction <= 1:
        raise ValueError(f"crop_fraction={crop_fraction}: allowed are numbers above 0, at most 1")
    builder = _builder(name, data_dir)
    features = builder.info.features
    for option, key in ("image_key", image_key), ("label_key", label_key):
        if key not in features:
            raise ValueError(f"{option}={key!r}: allowed are the features of {name}, {[*features]}")
    image, num_classes = features[image_key], getattr(features[label_key], "num_classes", None)
    if np.dtype(image.np_dtype) != np.uint8 or image.shape[2:] not in {(c,) for c in _MODES}:
        raise ValueError(
            f"image_key={image_key!r} is {image}: allowed are uint8 [H, W, C] with C in {[*_MODES]}"
        )
    if num_classes is None:
        raise ValueError(
            f"label_key={label_key!r} is {features[label_key]}: allowed are ClassLabel"
        )
    if size is None and None in image.shape:
        raise ValueError(
            f"size=None: allowed is a side in pixels; the images of {name} vary in shape"
        )
    fit = functools.partial(_fit, channels=image.shape[2], size=size, crop_fraction=crop_fraction)
    train, test = (
        RecordSource(_records(builder, image_key, option, split), image_key, label_key, fit)
        for option, split in {"train_split": train_split, "test_split": test_split}.items()
    )
    if in_memory:
        return image_dataset(train.decode(), test.decode(), num_classes)
    return image_dataset(train, test, num_classes, sample=1024)


class RecordSource:
    """Examples that are read and decoded when asked for, by a pool of threads.

    Args:
        records: a data source of tensorflow-datasets, its images not decoded.
        image_key: the feature that is the image.
        label_key: the feature that is the class.
        fit: turns a stored image (encoded bytes, or an array) into uint8 `[H, W, C]`.
    """

    def __init__(
        self, records: Any, image_key: str, label_key: str, fit: Callable[[Any], np.ndarray]
    ):
        self._records = records
        self._image_key = image_key
        self._label_key = label_key
        self._fit = fit
        self._pool = ThreadPoolExecutor()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        examples = self._read(indices)
        images = self._pool.map(self._fit, [example[self._image_key] for example in examples])
        return np.stack([*images]), self._classes(examples)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """The class of each example, `[N]` int32; the first use reads the whole split."""
        return np.concatenate([self._classes(self._read(part)) for part in self._parts()])

    def decode(self) -> ArraySource:
        """The same examples in memory."""
        images, labels = zip(*map(self.__getitem__, self._parts()), strict=True)
        return ArraySource(np.concatenate(images), np.concatenate(labels))

    def _parts(self) -> list[np.ndarray]:
        return np.split(np.arange(len(self)), range(1024, len(self), 1024))

    def _read(self, indices: np.ndarray) -> list[dict[str, Any]]:
        return self._records.__getitems__(indices.tolist())

    def _classes(self, examples: list[dict[str, Any]]) -> np.ndarray:
        return np.array([example[self._label_key] for example in examples], np.int32)


def _fit(stored: Any, channels: int, size: int | None, crop_fraction: float) -> np.ndarray:
    """A stored image as uint8 `[H, W, C]`: the central crop, resized to `[size, size, C]`."""
    from PIL import Image

    if isinstance(stored, bytes):
        image = Image.open(io.BytesIO(stored), formats=_FORMATS)
    else:
        image = Image.fromarray(stored.squeeze(2) if channels == 1 else stored)
    if size is None:
        return np.asarray(image.convert(_MODES[channels])).reshape(*image.size[::-1], channels)
    whole = math.ceil(size / crop_fraction)
    image.draft(None, (whole, whole))  # a large JPEG is decoded at a half, a quarter or an eighth
    kept = crop_fraction * min(image.size)
    left, top = ((side - kept) / 2 for side in image.size)
    image = image.convert(_MODES[channels]).resize(
        (size, size), Image.Resampling.BILINEAR, box=(left, top, left + kept, top + kept)
    )
    return np.asarray(image).reshape(size, size, channels)


def _builder(name: str, data_dir: str | None) -> Any:
    """The builder of a set that is prepared."""
    import tensorflow_datasets  # takes half a second to import

    try:
        parsed, _ = tensorflow_datasets.core.naming.parse_builder_name_kwargs(name)
        if parsed.namespace:
            raise ValueError(f"sets of others, as {parsed.namespace!r}, come with code of theirs")
        builder = tensorflow_datasets.builder(name, data_dir=data_dir)
        prepared = bool(builder.info.splits)
    except (ValueError, AssertionError, ImportError) as error:
        known = tensorflow_datasets.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near and name not in known else ""
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"name={name!r} is no set of tensorflow-datasets that can be read in "
            f"data_dir={data_dir!r}{hint} ({reason})"
        ) from error
    if not prepared:
        how = _how_to_prepare(name, data_dir)
        raise ValueError(f"name={name!r} is not prepared in data_dir={data_dir!r}; {how}")
    return builder


def _records(builder: Any, image_key: str, option: str, split: str) -> Any:
    """The records of a split at random, their images not decoded."""
    import tensorflow_datasets

    try:
        return builder.as_data_source(
            split, decoders={image_key: tensorflow_datasets.decode.SkipDecoding()}
        )
    except NotImplementedError as error:
        raise ValueError(
            f"name={builder.name!r} is prepared in a format that cannot be read at random; "
            f"delete {str(builder.data_path)!r} and "
            + _how_to_prepare(builder.name, str(builder.data_dir_root))
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{option}={split!r}: allowed are the splits {[*builder.info.splits]} or parts of them"
        ) from error


def _how_to_prepare(name: str, data_dir: str | None) -> str:
    return (
        'prepare it once with `pip install "jaxdist[prepare]"` and `python -c "import '
        f"tensorflow_datasets as tfds; tfds.builder({name!r}, data_dir={data_dir!r}, "
        "file_format='array_record').download_and_prepare()\"`"
    )
