"""Checkpoints: the state and the configuration that it belongs to, saved asynchronously."""

import contextlib
import functools
import gc
import json
import logging
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from jaxdist.training.faults import LostProcessError
from jaxdist.training.resize import make_resize, with_workers
from jaxdist.training.run import Run
from jaxdist.training.saving import Saves
from jaxdist.training.state import TrainState, abstract

KEPT = 2
"""Checkpoints that stay on disk: the last one, and the one before it in case that is damaged."""

MAY_CHANGE = (
    *("steps", "epochs", "eval_every", "log_every", "checkpoint_every", "tensorboard"),
    *("wandb", "local", "mesh.fsdp", "until"),
)
"""Keys that may change when a run goes on: its length, what it writes, how it is laid out; and
where the files of the user's own parts are, the keys that end in `.import`."""

OF_ELASTIC = ("workers", "base_workers", "rescale")
"""Keys that may change besides in an elastic run."""

_NOTE = {"config": dict, "digest": list, "workers": int, "told": dict}


class Checkpoints:
    """The checkpoints of one run, in one directory.

    Args:
        directory: absolute path; it need not exist.
        run: the run.
        clean: whether what an interrupted save has left may be removed, as by the run itself. Who
            only reads would remove what a living run is just saving.
    """

    def __init__(self, directory: Path, run: Run, *, clean: bool = False):
        self._directory, self._run, self._clean = directory, run, clean
        self._saves = Saves(directory, self.latest, self._make_manager)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error: BaseException | None, trace) -> None:
        """Closes; an error from before is raised rather than that of a save that failed too."""
        if isinstance(error, LostProcessError):
            self._saves.give_up()
        try:
            self.close()
        except Exception:
            if error is None:
                raise

    def latest(self) -> int | None:
        """The step of the last complete checkpoint, None if there is none."""
        return max(steps_in(self._directory), default=None)

    def _some(self, step: int | None) -> int:
        if (chosen := self.latest() if step is None else step) is None:
            raise ValueError(f"{self._directory} holds no complete checkpoint")
        return chosen

    def restore(self, step: int | None = None) -> TrainState:
        """A checkpoint's state, laid out as the run is, which need not be as it was saved.

        An elastic run may have another number of workers than that which saved; see
        `resize.make_resize`.

        Args:
            step: of a complete checkpoint; None for the last one.

        Raises:
            ValueError: if the checkpoint is damaged, or is of another configuration. Nothing on
                disk is changed.
        """
        step, run = self._some(step), self._run
        note = self.note(step)
        check_same(note["config"], run, f"checkpoint {self._directory / str(step)}")
        saved = note["workers"]
        template = abstract(run) if saved == run.workers.num else with_workers(run, saved)
        with self._readable(step):
            items = _orbax().args.Composite(state=_orbax().args.StandardRestore(_items(template)))
            state = TrainState(**self._manager.restore(step, args=items)["state"])
            if _digest(state) != note["digest"]:
                raise ValueError("its numbers are not the ones that were saved")
        return state if saved == run.workers.num else make_resize(run, saved)(state)

    def note(self, step: int | None = None) -> dict[str, Any]:
        """A checkpoint's note, without the state; of the last one without a step.

        Raises:
            ValueError: if it is damaged.
        """
        step, args = self._some(step), _orbax().args
        with self._readable(step):
            items = args.Composite(note=args.JsonRestore())
            note = self._manager.restore(step, args=items)["note"]
            if odd := [key for key, kind in _NOTE.items() if not isinstance(note[key], kind)]:
                raise ValueError(f"its note is none that was saved: {', '.join(odd)}")
            content = {key: note[key] for key in _NOTE}
            if note["checksum"] != checksum(content):
                raise ValueError("its note is not the one that was saved")
        return content

    def save(self, state: TrainState, step: int, counts: Mapping[str, Any]) -> None:
        """Starts to save; returns as soon as the state's memory may be reused.

        Args:
            state: the state.
            step: the steps that are done.
            counts: what the run's lines count up, as `RunLog.note` gives it.

        Raises:
            SaveError: if this or the save before it fails.
        """
        args = _orbax().args
        note = {
            "config": self._run.description,
            "digest": _digest(state),
            "workers": self._run.workers.num,
            "told": dict(counts),
        }
        note["checksum"] = checksum(note)
        items = args.Composite(state=args.StandardSave(_items(state)), note=args.JsonSave(note))
        self._saves.start(step, items)

    def check(self) -> None:
        """Looks whether a save in the background has failed, without waiting for it.

        Raises:
            SaveError: if it has.
        """
        self._saves.check()

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
            SaveError: if the last save fails.
        """
        self._saves.wait()

    def close(self) -> None:
        """Waits until everything is on disk, and ends what was used for it.

        Raises:
            SaveError: if the last save fails.
        """
        self._saves.close()

    @property
    def _manager(self):
        return self._saves.manager

    def _make_manager(self, barrier):
        ocp = _orbax()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT,
            cleanup_tmp_directories=self._clean,
            async_options=ocp.AsyncOptions(barrier_sync_fn=barrier),
        )
        return ocp.CheckpointManager(self._directory, options=options)

    @contextlib.contextmanager
    def _readable(self, step: int) -> Iterator[None]:
        """Turns whatever goes wrong in reading into one error that names the checkpoint."""
        try:
            with _quiet():
                yield
        except Exception as error:
            earlier = [s for s in steps_in(self._directory) if s < step]
            instead = f"go on from step {earlier[-1]}" if earlier else "start anew"
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(
                f"checkpoint {self._directory / str(step)} cannot be restored "
                f"({reason[:120]}). Nothing was changed; remove that directory to {instead}"
            ) from None


def steps_in(directory: Path) -> list[int]:
    """The steps of the complete checkpoints in a directory, which need not exist; ascending."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())
    return []


def check_same(saved: Mapping[str, Any], run: Run, where: str) -> None:
    """Checks that a run may go on where one of the configuration `saved` stopped.

    Raises:
        ValueError: if they differ in more than `MAY_CHANGE` and, for an elastic run, `OF_ELASTIC`;
            it names the keys and both values.
    """
    old, new = _flat(saved), _flat(run.description)
    may_change = MAY_CHANGE + OF_ELASTIC * run.elastic
    missing = object()
    differences = [
        f"{key}: {_shown(old, key)} there, {_shown(new, key)} here"
        for key in sorted(old | new)
        if key not in may_change
        and not key.endswith(".import")
        and old.get(key, missing) != new.get(key, missing)
    ]
    if differences:
        several = "workers" in old and old["workers"] != new.get("workers")
        hint = ", or base_workers for another number of workers" * (several and not run.elastic)
        raise ValueError(
            f"{where} is of another configuration ({'; '.join(differences)}). Nothing was changed; "
            f"use another workdir, or the configuration that it was made with{hint}"
        )


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "absent"


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _orbax() -> ModuleType:
    import orbax.checkpoint as ocp  # late: a run's first step need not wait for it

    return ocp


def checksum(note: Mapping[str, Any]) -> int:
    """A number by which a damaged note is noticed; it is no signature."""
    return zlib.crc32(json.dumps(note, sort_keys=True).encode())


def _items(state: TrainState) -> dict[str, Any]:
    """The state by name; without what its way keeps where that is nothing, as before 0.2."""
    items = state._asdict()
    return (
        items if jax.tree.leaves(state.extra) else {n: x for n, x in items.items() if n != "extra"}
    )


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
