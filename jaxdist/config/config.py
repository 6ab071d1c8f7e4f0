"""The configuration of a run."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax

from jaxdist.checks import LARGEST
from jaxdist.config.components import SLOTS, Component, component, read_plain
from jaxdist.config.speed import Clock
from jaxdist.data import make_augment
from jaxdist.names import lookup
from jaxdist.training.portable import point_name
from jaxdist.training.run import check_microbatches

_NO_JSON = (json.JSONDecodeError, UnicodeDecodeError, RecursionError)
_OF_START = ("start", "start_from", "start_prefix")


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random changes of the training images, drawn anew for each example and step."""

    crop: int = 0
    """Pixels of padding on each side before a random crop of the image's own size; 0: none."""
    flip: bool = False
    """Mirror half of the images left to right."""
    cutout: int = 0
    """Side of a random square that is blanked, in pixels; 0: none."""

    def make(self) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
        """The function `augment(x, key) -> x` of a batch, or None where nothing changes."""
        return None if self == Augment() else make_augment(**dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How one worker lies on the devices."""

    fsdp: int = 1
    """Devices per worker, over which its parameters and its batch are split."""

    def __post_init__(self):
        if self.fsdp < 1:
            raise ValueError(f"mesh.fsdp={self.fsdp}: allowed are integers from 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides the numbers of a run."""

    rule: Component
    data: Component
    model: Component
    optimizer: Component = dataclasses.field(default_factory=lambda: component("optimizer", "sgd"))
    schedule: Component = dataclasses.field(default_factory=lambda: component("schedule", "cosine"))
    drop: Component = dataclasses.field(default_factory=lambda: component("drop", "none"))
    shards: Component = dataclasses.field(default_factory=lambda: component("shards", "iid"))
    gradient: Component = dataclasses.field(default_factory=lambda: component("gradient", "plain"))
    task: Component = dataclasses.field(default_factory=lambda: component("task", "classification"))
    loss: Component = dataclasses.field(default_factory=lambda: component("loss", "cross_entropy"))
    attack: Component = dataclasses.field(default_factory=lambda: component("attack", "none"))
    augment: Augment = Augment()

    workers: int = 8
    """Number of workers, W; 0: as many as the devices have room for."""
    base_workers: int = 0
    """Makes the run elastic, so that it may go on with another number of workers: the number that
    batch size, learning rate and length are meant for. 0: it goes on with its own number only."""
    rescale: Literal["batch", "rate"] = "batch"
    """What an elastic run changes with its number of workers: the batch size, times base_workers /
    workers (rounded, to a multiple of microbatches), or the learning rate, times workers /
    base_workers."""
    batch_size: int = 32
    """Examples per worker and step."""
    microbatches: int = 1
    """Equal parts of a worker's batch whose gradients are computed one after the other and averaged
    before the optimizer, for less memory."""
    learning_rate: float = 0.1
    """Peak of the schedule."""
    epochs: float = 10.0
    """Length of the run: passes of each worker over its shard."""
    steps: int | None = None
    """Length of the run in steps; overrides epochs."""
    seed: int = 0
    """Decides the initial parameters, the shards, the batches and the augmentation. With keys of
    the implementation "rbg" (JAX_DEFAULT_PRNG_IMPL=rbg) what is drawn in a step depends on how many
    workers share a device, as `jax.vmap` draws otherwise; "threefry2x32" is the same everywhere."""
    shared_noise: bool = False
    """Perturb all workers alike where gradients are taken at perturbed parameters."""
    label_noise: float = 0.0
    """Fraction of the training labels that are made wrong, the same ones in every run of a seed."""
    batch_norm: Literal["local", "average", "reestimate"] = "average"
    """BatchNorm statistics to evaluate with: each worker's, their mean, or those of new batches."""
    clock: Clock = dataclasses.field(default_factory=Clock)
    asynchronous: bool = False
    """Faster workers take more local steps in a round, or apply averages later, by the clock;
    without a clock real processes take as many as they are fast."""
    round_steps: int = 1
    """Steps in one compiled program."""
    overlap: Literal["inside", "devices"] = "inside"
    """Where averages that are used later are computed: in the steps' program, or on as many further
    devices (on CPU the only way to overlap)."""
    local: Literal["vmap", "unroll"] = "vmap"
    """How the gradients of several workers on one device are computed."""
    mesh: Mesh = Mesh()
    eval_every: int = 100
    """Steps between evaluations; 0: at the end only."""
    log_every: int = 10
    """Steps between lines of metrics."""
    checkpoint_every: int = 500
    """Steps between checkpoints; 0: at the end only."""
    revive_every: int = 0
    """Steps between looks for workers that are not finite, which then start again from the others;
    0: never."""
    until: str | None = None
    """End at the first evaluation that is so good, as 'test_loss<=0.1', or '0.9' of the headline;
    None: after all steps."""
    start: str | None = None
    """Begin from given parameters: the folder of a run, or a file (.npz, .safetensors) that
    experiments.export wrote. It is read at step 0 only."""
    start_from: str = "mean"
    """The model of a run to begin from: mean, center, or a worker's number."""
    start_prefix: tuple[str, ...] = ()
    """Take only leaves whose path begins so, as 'block_0/norm', the rest from the initialiser."""
    tensorboard: bool = False
    """Write TensorBoard events besides the JSON lines."""
    wandb: str | None = None
    """Write the lines to this project of Weights & Biases as well."""

    def __post_init__(self):
        least = {"workers": 0, "base_workers": 0, "batch_size": 1, "microbatches": 1, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)}: allowed are integers from {low}")
        for name, value in vars(self).items():
            if isinstance(value, int) and value > LARGEST:
                raise ValueError(f"{name}={value}: allowed are integers to {LARGEST}")
        check_microbatches(self.batch_size, self.microbatches)
        try:
            point_name(self.start_from)
        except ValueError as error:
            raise ValueError(str(error).replace("which=", "start_from=", 1)) from None
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps={self.steps}: allowed are integers from 1, or None")
        for name in ("epochs", "learning_rate"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name}={getattr(self, name)}: allowed are numbers above 0")

    @property
    def devices(self) -> int:
        """How many devices a run of one process asks for where it can force them, on a CPU."""
        return max(self.workers, 1) * self.devices_per_worker

    @property
    def devices_per_worker(self) -> int:
        """Those that its arrays are split over, and as many again to overlap."""
        return self.mesh.fsdp * (2 if self.overlap == "devices" else 1)

    @property
    def rescaled(self) -> tuple[int, float]:
        """Batch size and learning rate, changed where the run has not its base workers."""
        scale = self.workers / self.base_workers if self.base_workers else 1.0
        if self.rescale == "rate":
            return self.batch_size, self.learning_rate * scale
        part = self.batch_size // self.microbatches
        return self.microbatches * max(1, round(part / scale)), self.learning_rate

    def plain(self) -> dict[str, Any]:
        """The whole configuration as plain JSON types; `from_plain` reads it back."""
        plain = dataclasses.asdict(self)
        plain |= {slot: getattr(self, slot).plain() for slot in SLOTS}
        if self.until is None:
            del plain["until"]
        if self.start is None:  # as in the runs that were made before there was one
            plain = {name: value for name, value in plain.items() if name not in _OF_START}
        return json.loads(json.dumps(plain))  # lists for tuples, as they are read back


def from_plain(plain: Mapping[str, Any]) -> Config:
    """The configuration that `Config.plain` wrote down.

    Raises:
        ValueError: for a key, a factory or an option that does not exist, with the nearest name.
    """
    fields = {field.name: field for field in dataclasses.fields(Config)}
    for name in plain:
        lookup(fields, name, "config key")
    parts = {slot: read_plain(slot, plain[slot]) for slot in SLOTS if slot in plain}
    nested = {"augment": Augment, "clock": Clock, "mesh": Mesh}
    read = {name: kind(**plain.get(name, {})) for name, kind in nested.items()}
    read |= {name: tuple(plain[name]) for name in ("start_prefix",) if name in plain}
    values: dict[str, Any] = {**plain, **parts, **read}
    return Config(**values)


def read_run(file: Path) -> Config:
    """The configuration of a run, of its `config.json`.

    Raises:
        ValueError: if the file is none, or as `from_plain`.
    """
    try:
        return from_plain(json.loads(file.read_text())["config"])
    except (*_NO_JSON, KeyError, TypeError, AttributeError):
        raise ValueError(f"{str(file)!r} is not the config.json of a run") from None
