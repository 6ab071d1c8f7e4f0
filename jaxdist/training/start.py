"""The start of a run from given parameters: fine-tuning, warm starts, streams of tasks."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdist.training.portable import Portable, flatten

MOST = 20
"""Leaves that an error lists of each kind of mismatch."""


class Start:
    """Where a run's first parameters come from, in place of its initialiser.

    Nothing is read before step 0, and nothing where a run goes on from a checkpoint: what it began
    from may be gone by then. All workers begin equal.

    Args:
        read: reads the model; its `about` is kept in the run's `config.json`.
        prefixes: beginnings of the paths of leaves, as "dense" or "block_0/norm"; only parameters
            and other variables under them are taken, the rest is the initialiser's. None: all.

    Attributes:
        about: what was read, once it is: the model's `about`, its "sha256", and the "leaves" that
            were taken.

    Example:
        >>> from jaxdist.training.portable import portable
        >>> model = portable(({"body": jnp.ones(2), "head": jnp.ones(3)}, {}))
        >>> start = Start(lambda: model, prefixes=("body",))
        >>> start.given(({"body": jnp.zeros(2), "head": jnp.zeros(5)}, {}))
        {'params/body': array([1., 1.], dtype=float32)}
        >>> Start(lambda: model).given(({"body": jnp.zeros(2), "head": jnp.zeros(5)}, {}))
        Traceback (most recent call last):
            ...
        ValueError: start does not fit the model: of another shape: params/head ((3,) there, (5,)
        here). Nothing was trained
    """

    def __init__(self, read: Callable[[], Portable], prefixes: tuple[str, ...] = ()):
        self._read, self._prefixes = read, tuple(prefix.rstrip("/") for prefix in prefixes)
        self.about: dict[str, Any] | None = None

    def given(self, model: tuple[Any, Any]) -> dict[str, np.ndarray]:
        """The leaves that are taken, by name, in the types of the model's own.

        Args:
            model: (params, state) as the initialiser makes them, or their shapes and types.

        Raises:
            ValueError: if the source cannot be read, or a leaf is missing, unknown, of another
                shape or kind of number, or not finite; it lists them.
        """
        source = self._read()
        wanted, there = self._under(flatten(model)), self._under(source.leaves)
        for prefix in self._prefixes:
            if not any(_is_under(name, prefix) for name in wanted):
                raise ValueError(
                    f"start_prefix={prefix!r}: no leaf of the model is under it; allowed are "
                    f"beginnings of {_listed(name.partition('/')[2] for name in flatten(model))}"
                )
        both = [name for name in wanted if name in there]
        shape = lambda name: (tuple(there[name].shape), tuple(wanted[name].shape))
        kinds = lambda name: (_kind(there[name]), _kind(wanted[name]))
        sides = lambda pair: f"{pair[0]} there, {pair[1]} here"
        differ = lambda of: [f"{n} ({sides(of(n))})" for n in both if len({*of(n)}) > 1]
        bad = [n for n in both if _kind(there[n]) == "float" and not _finite(there[n])]
        wrong = {
            "missing there": [name for name in wanted if name not in there],
            "unknown here": [name for name in there if name not in wanted],
            "of another shape": differ(shape),
            "of another kind of number": differ(kinds),
            "not finite": bad,
        }
        if faults := [f"{what}: {_listed(names)}" for what, names in wrong.items() if names]:
            where = f"={source.about['from']!r}" if "from" in source.about else ""
            raise ValueError(
                f"start{where} does not fit the model: {'; '.join(faults)}. Nothing was trained"
            )
        self.about = {
            **source.about,
            "sha256": source.checksum,
            "leaves": f"{len(wanted)} of {len(flatten(model))}",
        }
        return {name: there[name].astype(wanted[name].dtype, copy=False) for name in wanted}

    def describe(self) -> str:
        """What the run begins from, in words."""
        about = ", ".join(f"{key} {value}" for key, value in (self.about or {}).items())
        return f"begins from given parameters: {about}"

    def _under(self, leaves: Mapping[str, Any]) -> dict[str, Any]:
        keep = lambda name: not self._prefixes or any(_is_under(name, p) for p in self._prefixes)
        return {name: x for name, x in leaves.items() if keep(name)}


def _is_under(name: str, prefix: str) -> bool:
    """Whether a leaf's path, which follows "params/" or "state/", begins so, in whole parts."""
    return f"{name.partition('/')[2]}/".startswith(f"{prefix}/")


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(names[:MOST]) + more


def _kind(x: Any) -> str:
    kinds = {"float": jnp.floating, "complex": jnp.complexfloating, "integer": jnp.integer}
    return next((name for name, kind in kinds.items() if jnp.issubdtype(x.dtype, kind)), "other")


def _finite(x: np.ndarray) -> bool:
    return bool(np.isfinite(x.astype(np.float32) if x.dtype.kind == "V" else x).all())
