"""The configuration of a run, and what is built from it."""

import dataclasses
import inspect
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np
import optax

from experiments.components import SLOTS, Component, component, read_plain
from experiments.optimizers import by_step
from experiments.pace import Clock, pace
from jaxdist import rules
from jaxdist.checks import LARGEST
from jaxdist.clock import Timeline
from jaxdist.data import Dataset, Sampler, make_augment, with_flipped_labels, with_label_noise
from jaxdist.names import lookup
from jaxdist.tasks import Task
from jaxdist.training import Run
from jaxdist.training.run import check_microbatches
from jaxdist.training.way import Way
from jaxdist.training.ways import EveryStep, Overlap, Rounds
from jaxdist.workers import Workers


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
    """Faster workers take more local steps in a round, or apply averages later, as the clock says;
    without a clock real processes take as many as they are fast."""
    round_steps: int = 1
    """Steps in one compiled program."""
    overlap: Literal["inside", "beside"] = "inside"
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
    tensorboard: bool = False
    """Write TensorBoard events besides the JSON lines."""

    def __post_init__(self):
        least = {"workers": 0, "base_workers": 0, "batch_size": 1, "microbatches": 1, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)}: allowed are integers from {low}")
        for name, value in vars(self).items():
            if isinstance(value, int) and value > LARGEST:
                raise ValueError(f"{name}={value}: allowed are integers to {LARGEST}")
        check_microbatches(self.batch_size, self.microbatches)
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
        """Those that its arrays are split over, and those beside them."""
        return self.mesh.fsdp * (2 if self.overlap == "beside" else 1)

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
    return Config(**plain | parts | read)


def build(config: Config) -> Run:
    """Builds what the run needs: workers, data, model and transformation.

    Raises:
        ValueError: from the part that a wrong value belongs to.
    """
    return paced(config)[0]


def paced(config: Config) -> tuple[Run, Timeline | None]:
    """`build`, and the run's timeline on its virtual clock, None without one."""
    if not config.workers:
        workers = max(jax.device_count() // config.devices_per_worker, 1)
        config = dataclasses.replace(config, workers=workers)
    clock = config.clock
    if not clock.budget:
        return _paced(config, config)
    longest = dataclasses.replace(clock, budget=0.0)
    steps = math.ceil(clock.budget / clock.step_seconds) * 2
    run, _ = _paced(dataclasses.replace(config, clock=longest, steps=steps), config)
    within = int(np.searchsorted(run.virtual_seconds, clock.budget, side="right"))
    steps = max(within, 1) * run.way.unit
    return _paced(dataclasses.replace(config, clock=longest, steps=steps), config)


def _paced(config: Config, described: Config) -> tuple[Run, Timeline | None]:
    inner = dataclasses.asdict(config.mesh) if config.mesh.fsdp > 1 else None
    places = _devices(config)
    workers, *beside = (Workers.create(config.workers, devices=d, inner=inner) for d in places)
    dataset = config.data()
    if len(dataset.input_shape) != 3 and config.augment != Augment():
        raise ValueError(f"augment changes images; the data set {config.data.factory} has none")
    shards = config.shards(dataset.train, config.workers, config.seed)
    if config.label_noise:
        dataset = with_label_noise(dataset, rate=config.label_noise, seed=config.seed)
    if config.attack.factory == "label_flip":
        bad = shards[len(shards) - config.attack.workers :]
        dataset = with_flipped_labels(dataset, np.concatenate([[], *bad]).astype(np.int64))
    of_base = shards  # the length of a run and its schedule must not change with its workers
    if config.base_workers not in (0, config.workers):
        of_base = config.shards(dataset.train, config.base_workers, config.seed)
    per_epoch = Sampler(of_base, config.batch_size, config.seed).steps_per_epoch
    batch_size, learning_rate = config.rescaled
    steps = config.steps or max(1, round(config.epochs * per_epoch))
    if steps > LARGEST:
        raise ValueError(f"epochs={config.epochs}: {steps:.2g} steps; allowed are up to {LARGEST}")
    rule, options = config.rule.factory, config.rule.options()
    rate = by_step(config.schedule(learning_rate, steps))
    drop = config.drop(per_epoch, total_steps=steps, axis=workers.axis)
    optimizer = optax.chain(config.optimizer(1.0), rate, drop, _attack(config, workers))
    make = lambda **options: rules.compose(optimizer, rule, workers.axis, **options)
    run = Run(
        workers=workers,
        task=_task(config, dataset),
        dataset=dataset,
        tx=make(**options),
        rule=rule,
        shards=shards,
        batch_size=batch_size,
        microbatches=config.microbatches,
        steps=steps,
        seed=config.seed,
        probe_period=options["period"] if options.get("norm_source") == "probe" else None,
        gradient=None if config.gradient.factory == "plain" else config.gradient,
        shared_noise=config.shared_noise,
        local=config.local,
        batch_norm=config.batch_norm,
        eval_every=config.eval_every,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        revive_every=config.revive_every,
        way=_way(config, next(iter(beside), None)),
        tensorboard=config.tensorboard,
        elastic=config.base_workers > 0,
        description=described.plain(),
    )
    return pace(config, run, make)


def _way(config: Config, others: Workers | None) -> Way:
    """How the run advances; asynchronous ones begin as others, and are changed by `pace`."""
    chosen = {
        f"round_steps={config.round_steps}": config.round_steps > 1,
        f"overlap={config.overlap!r}": others is not None,
        f"asynchronous={config.asynchronous}": config.asynchronous,
    }
    # delays up to max_delay are a table of the rule's, and the run's steps are equal
    tables = config.asynchronous and config.rule.options().get("max_delay") is not None
    if sum(chosen.values()) - tables > 1:
        given = " and ".join(name for name, is_set in chosen.items() if is_set)
        raise ValueError(f"{given} are given; a run advances in one of these ways")
    if others is not None:
        return Overlap(others)
    return Rounds(config.round_steps) if config.round_steps > 1 else EveryStep()


def _task(config: Config, dataset: Dataset) -> Task:
    """What is learned; `loss` and `augment` go to the tasks that take them."""
    offered = {"loss": config.loss(), "augment": config.augment.make()}
    takes = [name for name in offered if name in inspect.signature(config.task.make).parameters]
    for name in offered:
        default = Config.__dataclass_fields__[name]
        default = default.default_factory() if name == "loss" else default.default
        if name not in takes and getattr(config, name) != default:
            raise ValueError(
                f"{name}={getattr(config, name)}: the task {config.task.factory!r} takes no {name}"
            )
    model = config.model(dataset.input_shape, dataset.num_classes)
    return config.task(model, dataset, **{name: offered[name] for name in takes})


def _attack(config: Config, workers: Workers) -> optax.GradientTransformation:
    """What bad workers bring to the rule's syncs."""
    options = config.rule.options()
    if config.attack.factory not in ("none", "label_flip") and "period" not in options:
        raise ValueError(
            f"attack={config.attack.factory!r} changes what is brought to syncs of parameters; the "
            f"rule {config.rule.factory!r} has no period (local_sgd with period=1 has)"
        )
    return config.attack(workers.axis, options.get("period", 1))


def _devices(config: Config) -> list[list[jax.Device]]:
    """Where the workers are, and where there are others beside them.

    All devices; of a CPU's forced ones, which may be too many, one for each worker's part. Beside
    the workers is the second half of each process's.
    """
    by_process: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    if jax.default_backend() == "cpu" and len(by_process) == 1:
        by_process = {0: by_process[0][: config.devices]}
    num, each = sum(map(len, by_process.values())), config.devices_per_worker
    of = f"{num} devices" + f" of {len(by_process)} processes" * (len(by_process) > 1)
    if num % each:
        raise ValueError(f"each worker takes {each} devices; {of} cannot be divided so")
    if config.workers % (num // each):
        raise ValueError(
            f"workers={config.workers} on {of}: allowed are multiples of {num // each}, or 0 for "
            f"{num // each} workers"
        )
    if config.overlap == "inside":
        return [[device for devices in by_process.values() for device in devices]]
    if odd := [process for process, devices in by_process.items() if len(devices) % 2]:
        raise ValueError(
            f"overlap='beside': process {odd[0]} has {len(by_process[odd[0]])} devices; it must be "
            f"an even number, half of them for the workers"
        )
    cut = lambda devices: (devices[: len(devices) // 2], devices[len(devices) // 2 :])
    halves = zip(*map(cut, by_process.values()), strict=True)
    return [[device for devices in half for device in devices] for half in halves]
