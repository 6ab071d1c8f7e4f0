"""Checkpoints: the state and the configuration that it belongs to, saved asynchronously."""

import contextlib
import functools
import gc
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from jaxdist.training.state import TrainState

KEPT = 2
"""Checkpoints that stay on disk: the last one, and the one before it in case that is damaged."""

MAY_CHANGE = (
    *("steps", "epochs", "eval_every", "log_every", "checkpoint_every", "tensorboard"),
    *("local", "fsdp"),
)
"""Keys that may change when a run goes on: its length, what it writes, how it is laid out."""


class Checkpoints:
    """The checkpoints of one run, in one directory.

    Args:
        directory: absolute path; it need not exist.
        description: the run's configuration as plain JSON types.
    """

    def __init__(self, directory: Path, description: Mapping[str, Any]):
        self._directory = directory
        self._description = dict(description)

    def latest(self) -> int | None:
        """The step of the last complete checkpoint, None if there is none."""
        return max(self._steps(), default=None)

    def restore(self, template: TrainState) -> TrainState:
        """The last checkpoint's state, laid out as `template` says.

        Args:
            template: shapes, types and shardings, as `state.abstract` gives them; the number of
                devices need not be that of the run which saved.

        Raises:
            ValueError: if the checkpoint is damaged, or is of another configuration. Nothing on
                disk is changed.
        """
        step, args = self.latest(), _orbax().args
        with self._readable(step):
            items = args.Composite(note=args.JsonRestore())
            note = self._manager.restore(step, args=items)["note"]
            config, digest = note["config"], note["digest"]
        check_same(config, self._description, f"checkpoint {self._directory / str(step)}")
        with self._readable(step):
            items = args.Composite(state=args.StandardRestore(template))
            state = self._manager.restore(step, args=items)["state"]
            if _digest(state) != digest:
                raise ValueError("its numbers are not the ones that were saved")
        return state

    def save(self, state: TrainState, step: int) -> None:
        """Starts to save; returns as soon as the state's memory may be reused."""
        args = _orbax().args
        note = {"config": self._description, "digest": _digest(state)}
        items = args.Composite(state=args.StandardSave(state), note=args.JsonSave(note))
        self._manager.save(step, args=items)

    def close(self) -> None:
        """Waits until everything is on disk."""
        if "_manager" in self.__dict__:
            self._manager.close()

    @functools.cached_property
    def _manager(self):
        ocp = _orbax()
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, cleanup_tmp_directories=True)
        return ocp.CheckpointManager(self._directory, options=options)

    def _steps(self) -> list[int]:
        with contextlib.suppress(FileNotFoundError):
            return sorted(int(p.name) for p in self._directory.iterdir() if p.name.isdigit())
        return []

    @contextlib.contextmanager
    def _readable(self, step: int) -> Iterator[None]:
        """Turns whatever goes wrong in reading into one error that names the checkpoint."""
        try:
            with _quiet():
                yield
        except Exception as error:
            earlier = [s for s in self._steps() if s < step]
            instead = f"go on from step {earlier[-1]}" if earlier else "start anew"
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(
                f"checkpoint {self._directory / str(step)} cannot be restored "
                f"({reason[:120]}). Nothing was changed; remove that directory to {instead}"
            ) from None


def check_same(saved: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Checks that a run of the configuration `wanted` may go on where one of `saved` stopped.

    Raises:
        ValueError: if they differ in more than `MAY_CHANGE`; it names the keys and both values.
    """
    old, new = _flat(saved), _flat(wanted)
    missing = object()
    differences = [
        f"{key}: {_shown(old, key)} there, {_shown(new, key)} here"
        for key in sorted(old | new)
        if key not in MAY_CHANGE and old.get(key, missing) != new.get(key, missing)
    ]
    if differences:
        raise ValueError(
            f"{where} is of another configuration ({'; '.join(differences)}). Nothing was changed; "
            "use another workdir, or the configuration that it was made with"
        )


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "absent"


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _orbax() -> ModuleType:
    import orbax.checkpoint as ocp  # late: a run's first step need not wait for it

    return ocp


def _digest(state: TrainState) -> list[int]:
    """For each leaf the sum of its bit patterns modulo 2^32, which no layout changes."""
    return _bit_sums(state, state.step.sharding).tolist()


@functools.partial(jax.jit, static_argnums=1)
def _bit_sums(tree: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    def one(x):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        x = x.astype(jnp.uint8) if x.dtype == bool else x
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
        return bits.astype(jnp.uint32).sum(dtype=jnp.uint32)

    sums = jnp.stack([one(x) for x in jax.tree.leaves(tree)])
    return jax.lax.with_sharding_constraint(sums, sharding)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the readers' threads print about a failed read off the console."""
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    loggers = [logging.getLogger(name) for name in ("asyncio", "absl")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    except Exception:
        time.sleep(0.2)  # other reads of the same checkpoint are still failing
        gc.collect()
        raise
    finally:
        sys.unraisablehook = before
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
