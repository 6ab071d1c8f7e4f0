"""Models as files of named arrays, which need no checkpoint and no configuration to be read.

Names are "params/..." and "state/..." with the path of a leaf, as `jaxdist.trees.path_name` writes
it: "params/dense/kernel". A file is a NumPy archive (.npz) or one of safetensors, whose format is
at https://huggingface.co/docs/safetensors.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist.checks import local_path
from jaxdist.files import write_atomically
from jaxdist.trees import path_name

PARAMS, STATE = "params", "state"
_ABOUT, _TYPES = "__metadata__", "dtypes"  # the latter: those that NumPy's files do not know


class Point(NamedTuple):
    """One model's parameters, and its other variables (BatchNorm statistics)."""

    params: Any
    state: Any


class Portable(NamedTuple):
    """A model as named arrays, and its description."""

    leaves: dict[str, np.ndarray]
    about: dict[str, str]

    @property
    def checksum(self) -> str:
        """The SHA-256 of names, types, shapes and numbers: the same from a run and from a file."""
        digest = hashlib.sha256()
        for name, x in sorted(self.leaves.items()):
            digest.update(json.dumps([name, str(x.dtype), x.shape]).encode())
            digest.update(np.ascontiguousarray(x).tobytes())
        return digest.hexdigest()


def flatten(point: tuple[Any, Any]) -> dict[str, Any]:
    """The leaves of (params, state) by name.

    Example:
        >>> flatten(({"dense": {"kernel": 1, "bias": 2}}, {}))
        {'params/dense/bias': 2, 'params/dense/kernel': 1}
    """
    roots = {PARAMS: point[0], STATE: point[1]}
    return {
        f"{root}/{path_name(path)}" if path else root: x
        for root, tree in roots.items()
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def replaced(point: tuple[Any, Any], leaves: Mapping[str, Any]) -> Point:
    """(params, state) with other leaves where there are any of their name."""
    trees, shape = jax.tree.flatten(tuple(point))
    new = [leaves.get(name, x) for name, x in zip(flatten(point), trees, strict=True)]
    return Point(*shape.unflatten(new))


def portable(point: tuple[Any, Any], **about: str) -> Portable:
    """The arrays of a model, on the host.

    Raises:
        ValueError: for leaves that are no numbers, as random keys.
    """
    leaves = flatten(point)
    no_numbers = lambda x: jnp.issubdtype(jnp.asarray(x).dtype, jax.dtypes.extended)
    if odd := [name for name, x in leaves.items() if no_numbers(x)]:
        raise ValueError(f"leaves are {', '.join(odd)}: allowed are arrays of numbers, not keys")
    return Portable({name: np.asarray(x) for name, x in leaves.items()}, about)


def write(path: str | Path, model: Portable, *, force: bool = False) -> None:
    """Writes a file, whole or not at all.

    Args:
        path: it ends in .npz or .safetensors.
        model: the arrays, and their description.
        force: whether a file that is there may be replaced.

    Raises:
        ValueError: for another ending, a file that is there, or where safetensors is not installed.
        OSError: if it cannot be written, with its name.

    Example:
        >>> import tempfile
        >>> model = portable(({"w": jnp.ones(2)}, {}), of="an example")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(f"{folder}/model.npz", model)
        ...     copy = read(f"{folder}/model.npz")
        >>> copy.leaves["params/w"].tolist(), copy.about, copy.checksum == model.checksum
        ([1.0, 1.0], {'of': 'an example'}, True)
    """
    path = check_free(path, force=force)
    write_atomically(path, _FORMATS[path.suffix][0](model))


def check_free(path: str | Path, *, force: bool = False) -> Path:
    """The path of a file that `write` would write.

    Raises:
        ValueError: as it does.
    """
    path = local_path("file", path)
    _check_format(path)
    if path.exists() and not force:
        raise ValueError(f"file={str(path)!r} is there already: allowed is a new one, or --force")
    return path


def read(path: str | Path) -> Portable:
    """What `write` wrote.

    Raises:
        ValueError: if there is no such file, it is of another format or damaged, or safetensors is
            not installed.
    """
    path = local_path("file", path)
    _check_format(path)
    if not path.is_file():
        raise ValueError(f"file={str(path)!r} is no file: allowed is one that was exported")
    try:
        return _FORMATS[path.suffix][1](path)
    except Exception as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)[:120]
        raise ValueError(f"file={str(path)!r} cannot be read ({why})") from None


def _check_format(path: Path) -> None:
    if path.suffix not in _FORMATS:
        raise ValueError(f"file={str(path)!r}: allowed are names that end in {', '.join(_FORMATS)}")
    if path.suffix == ".safetensors":
        _safetensors(path)


def _safetensors(path: Path) -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError:
        raise ValueError(
            f"file={str(path)!r} needs safetensors: pip install safetensors; .npz needs nothing"
        ) from None
    return safetensors


def _to_npz(model: Portable) -> bytes:
    types = {name: str(x.dtype) for name, x in model.leaves.items() if x.dtype.kind == "V"}
    raw = {name: x.view(f"u{x.itemsize}") if name in types else x for name, x in _leaves(model)}
    about = model.about | ({_TYPES: json.dumps(types)} if types else {})
    file = io.BytesIO()
    arrays: dict[str, Any] = {_ABOUT: np.array(json.dumps(about)), **raw}
    np.savez(file, **arrays)
    return file.getvalue()


def _of_npz(path: Path) -> Portable:
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no archive")
    with np.load(path, allow_pickle=False) as file:
        leaves = {name: file[name] for name in file.files}
    about = json.loads(leaves.pop(_ABOUT, np.array("{}")).item())
    for name, kind in json.loads(about.pop(_TYPES, "{}")).items():
        leaves[name] = leaves[name].view(jnp.dtype(kind))
    return Portable(leaves, about)


def _to_safetensors(model: Portable) -> bytes:
    return _safetensors(Path()).numpy.save(dict(_leaves(model)), metadata=model.about)


def _of_safetensors(path: Path) -> Portable:
    with _safetensors(path).safe_open(path, framework="numpy") as file:
        leaves = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Portable(leaves, dict(file.metadata() or {}))


def _leaves(model: Portable) -> list[tuple[str, np.ndarray]]:
    """In one piece each: what is strided would be written as it lies in memory."""
    return [(name, np.require(x, requirements="C")) for name, x in model.leaves.items()]


_FORMATS = {".npz": (_to_npz, _of_npz), ".safetensors": (_to_safetensors, _of_safetensors)}


def point_name(which: str | int) -> str:
    """The name of one of a run's models: "mean", "center", or "worker 3" of 3 and "3".

    Raises:
        ValueError: for anything else.

    Example:
        >>> point_name("center"), point_name("3")
        ('center', 'worker 3')
    """
    text = str(which)
    if text.isdecimal():
        return f"worker {int(text)}"
    if text not in ("mean", "center"):
        raise ValueError(f"which={which!r}: allowed are mean, center, or a worker's number")
    return text
