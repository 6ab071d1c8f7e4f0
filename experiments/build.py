"""A run from its configuration: workers, data, task, rule, and how it advances."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Sequence

import jax
import numpy as np
import optax

from experiments.components import component
from experiments.config import Augment, Config
from experiments.load import read_start
from experiments.optimizers import by_step
from experiments.pace import is_bounded, pace
from jaxdist import rules
from jaxdist.checks import LARGEST
from jaxdist.clock import Timeline
from jaxdist.data import Dataset, Sampler, with_flipped_labels, with_label_noise
from jaxdist.tasks import Task
from jaxdist.training import Run, Start
from jaxdist.training.way import Way
from jaxdist.training.ways import EveryStep, Overlap, Rounds
from jaxdist.workers import Workers


def build(config: Config, devices: Sequence[jax.Device] | None = None) -> Run:
    """Builds what the run needs: workers, data, model and transformation.

    Args:
        config: the configuration.
        devices: where its workers are; None for where a run trains.

    Raises:
        ValueError: from the part that a wrong value belongs to.
    """
    return paced(config, devices)[0]


def paced(
    config: Config, devices: Sequence[jax.Device] | None = None
) -> tuple[Run, Timeline | None]:
    """`build`, and the run's timeline on its virtual clock, None without one."""
    if not config.workers:
        workers = max(jax.device_count() // config.devices_per_worker, 1)
        config = dataclasses.replace(config, workers=workers)
    clock = config.clock
    if not clock.budget:
        return _paced(config, config, devices)
    longest = dataclasses.replace(clock, budget=0.0)
    steps = math.ceil(clock.budget / clock.step_seconds) * 2
    run, _ = _paced(dataclasses.replace(config, clock=longest, steps=steps), config, devices)
    within = int(np.searchsorted(run.virtual_seconds, clock.budget, side="right"))
    steps = max(within, 1) * run.way.unit
    return _paced(dataclasses.replace(config, clock=longest, steps=steps), config, devices)


def _paced(
    config: Config, described: Config, devices: Sequence[jax.Device] | None
) -> tuple[Run, Timeline | None]:
    inner = dataclasses.asdict(config.mesh) if config.mesh.fsdp > 1 else None
    places = _devices(config) if devices is None else [devices]
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
    row = rules.row(rule)
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
        probe_period=row.meets(options) if "probe_grad" in row.asks(options) else None,
        gradient=None if config.gradient.factory == "plain" else config.gradient,
        shared_noise=config.shared_noise,
        local=config.local,
        batch_norm=config.batch_norm,
        eval_every=config.eval_every,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        revive_every=config.revive_every,
        way=_way(config, next(iter(beside), None)),
        start=_start(config),
        tensorboard=config.tensorboard,
        wandb=config.wandb,
        elastic=config.base_workers > 0,
        description=described.plain(),
    )
    return pace(config, run, make)


def _start(config: Config) -> Start | None:
    if config.start is None:
        return None
    read = functools.partial(read_start, config.start, config.start_from)
    return Start(read, config.start_prefix)


def _way(config: Config, others: Workers | None) -> Way:
    """How the run advances; asynchronous ones begin as others, and are changed by `pace`."""
    chosen = {
        f"round_steps={config.round_steps}": config.round_steps > 1,
        f"overlap={config.overlap!r}": others is not None,
        f"asynchronous={config.asynchronous}": config.asynchronous,
    }
    if sum(chosen.values()) - is_bounded(config) > 1:
        given = " and ".join(name for name, is_set in chosen.items() if is_set)
        raise ValueError(f"{given} are given; a run advances in one of these ways")
    if others is not None:
        return Overlap(others)
    return Rounds(config.round_steps) if config.round_steps > 1 else EveryStep()


def _task(config: Config, dataset: Dataset) -> Task:
    """What is learned; `loss` and `augment` go to the tasks that take them."""
    offered = {"loss": config.loss(), "augment": config.augment.make()}
    takes = [name for name in offered if name in inspect.signature(config.task.make).parameters]
    defaults = {"loss": component("loss", "cross_entropy"), "augment": Augment()}
    for name, default in defaults.items():
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
