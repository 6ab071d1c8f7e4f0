"""Data sets in files of one's own: IDX folders, `.npz` archives and plain text."""

import gzip
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from jaxdist.checks import local_path
from jaxdist.data.sources import ArraySource, Dataset, TokenSource, image_dataset


def idx(*, path: str) -> Dataset:
    """A folder in the format of MNIST: four IDX files, gzipped or not.

    The files are `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    `t10k-labels-idx1-ubyte`, also with `.` before `idx`, each with or without `.gz`.

    Args:
        path: the folder of the four files.

    Raises:
        ValueError: if the folder or a file is missing, truncated or of another format, or images
            and labels do not match.
    """
    folder = local_path("path", path)
    if not folder.is_dir():
        raise ValueError(f"path={path!r} is not a folder: allowed is a folder of IDX files")
    read = lambda part: tuple(_read_idx(folder, f"{part}-{kind}") for kind in _RANK)
    return _dataset(path, read("train"), read("t10k"))


def npz(*, path: str) -> Dataset:
    """A numpy archive with the arrays `x_train`, `y_train`, `x_test` and `y_test`.

    Images are uint8, `[N, H, W]` or `[N, H, W, C]`; labels are integers from 0, `[N]` or `[N, 1]`.

    Args:
        path: the `.npz` file of the four arrays.

    Raises:
        ValueError: if the file is missing, truncated or of another format, or images and labels do
            not match.
    """
    file = local_path("path", path)
    if not file.is_file():
        raise ValueError(f"path={path!r} is not a file: allowed is a .npz archive")
    try:
        with file.open("rb") as stream, np.load(stream) as archive:
            arrays = dict(archive)
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"path={path!r} cannot be read as a .npz archive: {error}") from error
    names = "x_train", "y_train", "x_test", "y_test"
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(
            f"path={path!r} lacks {missing}, it holds {sorted(arrays)}: all are needed"
        )
    return _dataset(path, *(tuple(arrays[f"{x}_{part}"] for x in "xy") for part in _PARTS))


def text(*, path: str, length: int = 128, test_fraction: float = 0.1) -> Dataset:
    """The bytes of a file, cut into sequences for next-byte prediction; the vocabulary is 256.

    The end of the file is the test part. Each part is cut into windows that overlap by one byte, so
    that each byte but the first is predicted once; what does not fill a window is dropped.

    Args:
        path: the file to learn, of any encoding.
        length: bytes per sequence, T.
        test_fraction: share of the file that is kept for testing, between 0 and 1.

    Raises:
        ValueError: if the file is missing or too short for a sequence in each part, or an option
            is out of range.
    """
    if length < 1:
        raise ValueError(f"length={length}: allowed are integers from 1")
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction={test_fraction}: allowed are numbers between 0 and 1")
    file = local_path("path", path)
    if not file.is_file():
        raise ValueError(f"path={path!r} is not a file: allowed is a file of text")
    data = np.fromfile(file, np.uint8)
    parts = np.split(data, [len(data) - round(test_fraction * len(data))])
    if min(map(len, parts)) <= length:
        raise ValueError(
            f"path={path!r} holds {len(data)} bytes: allowed are files with more than "
            f"length={length} bytes in each part (test_fraction={test_fraction})"
        )
    train, test = (
        TokenSource(np.lib.stride_tricks.sliding_window_view(part, length + 1)[::length])
        for part in parts
    )
    return Dataset(train, test, input_shape=(length,), num_classes=256)


_PARTS = "train", "test"
_RANK = {"images": 3, "labels": 1}


def _dataset(path: str, train: tuple[np.ndarray, ...], test: tuple[np.ndarray, ...]) -> Dataset:
    """A data set from (images, labels) of both parts; its errors name the path."""
    try:
        train, test = ArraySource(*train), ArraySource(*test)
        return image_dataset(train, test, 1 + int(train.labels.max()))
    except ValueError as error:
        raise ValueError(f"path={path!r}: {error}") from error


def _read_idx(folder: Path, stem: str) -> np.ndarray:
    """The unsigned bytes of `stem`'s IDX file: magic number, sizes (big-endian int32), data."""
    rank = _RANK[stem.partition("-")[2]]
    names = [f"{stem}{dot}idx{rank}-ubyte{end}" for dot in "-." for end in ("", ".gz")]
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise ValueError(f"path={str(folder)!r} holds {there}: needed is one of {', '.join(names)}")
    try:
        raw = file.read_bytes()
        if file.suffix == ".gz":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    header, magic = 4 * (1 + rank), bytes([0, 0, 8, rank])
    if len(raw) < header or raw[:4] != magic:
        raise ValueError(f"{file} begins with {raw[:4].hex()!r}: allowed is IDX, {magic.hex()!r}")
    shape = np.frombuffer(raw, ">i4", count=rank, offset=4).tolist()
    if math.prod(shape) != len(raw) - header or min(shape) < 0:
        raise ValueError(
            f"{file} is damaged: its header says {shape} bytes, it holds {len(raw) - header}"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)
