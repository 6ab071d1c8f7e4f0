"""A run from its configuration: workers, data, task, rule, and how it advances."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import optax

from jaxdist import rules, training
from jaxdist.checks import LARGEST, local_path
from jaxdist.clock import Timeline
from jaxdist.config.components import component
from jaxdist.config.config import Augment, Config, Mesh, read_run
from jaxdist.config.optimizers import by_step
from jaxdist.config.pace import is_bounded, pace
from jaxdist.config.places import places
from jaxdist.data import Dataset, Sampler, with_flipped_labels, with_label_noise
from jaxdist.tasks import Task
from jaxdist.training import Loaded, Portable, Run, Start, portable, record, targets
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
    assert run.virtual_seconds is not None
    within = int(np.searchsorted(run.virtual_seconds, clock.budget, side="right"))
    steps = max(within, 1) * run.way.unit
    return _paced(dataclasses.replace(config, clock=longest, steps=steps), config, devices)


def load(workdir: str | Path, run: Run | None = None, *, step: int | None = None) -> Loaded:
    """The run in a folder, its task, and the models of one of its checkpoints.

    It is opened on the devices that there are here, whatever it was trained on.

    Args:
        workdir: the folder that it was trained in.
        run: the run itself, if it was not built of a configuration; else that of the folder's
            `config.json` is built.
        step: of a checkpoint that is kept; None for the last one.

    Returns:
        A `jaxdist.training.Loaded`: `.mean`, `.center` and `.worker(i)` are points (params, state),
        `.predictor("mean")` is a function of a batch, `.task` what was learned.

    Raises:
        ValueError: if the folder holds no run or no such checkpoint, one that is damaged, or a part
            of the run is of a user's own file that was not run.
    """
    folder = local_path("workdir", workdir)
    if run is not None:
        return training.load(folder, run, step=step)
    if not (folder / record.CONFIG).is_file():
        raise ValueError(f"workdir={str(workdir)!r} holds no run ({record.CONFIG})")
    described = read_run(folder / record.CONFIG)
    config = dataclasses.replace(described, mesh=Mesh(), overlap="inside", wandb=None)
    config = dataclasses.replace(config, workers=config.workers or _workers(folder))
    most = min(jax.device_count(), config.workers)
    number = next(n for n in range(most, 0, -1) if config.workers % n == 0)
    built = build(config, jax.devices()[:number])
    built = dataclasses.replace(built, description=described.plain())
    return training.load(folder, built, step=step)


def _workers(folder: Path) -> int:
    """How many workers there were, of a run that had as many as there were devices."""
    devices = record.read_json(folder / record.CONFIG)["devices"]
    return devices["mesh"]["worker"] * devices["workers_per_device"]


def _paced(
    config: Config, described: Config, devices: Sequence[jax.Device] | None
) -> tuple[Run, Timeline | None]:
    inner = dataclasses.asdict(config.mesh) if config.mesh.fsdp > 1 else None
    where = places(config) if devices is None else [devices]
    workers, *others = (Workers.create(config.workers, devices=d, inner=inner) for d in where)
    dataset = config.data()
    if len(dataset.input_shape) != 3 and config.augment != Augment():
        raise ValueError(
            f"augment={config.augment}: allowed is {Augment()}, as augment changes images; the "
            f"data set {config.data.factory} has none"
        )
    shards = config.shards(dataset.train, config.workers, config.seed)
    if config.label_noise:
        dataset = with_label_noise(dataset, rate=config.label_noise, seed=config.seed)
    if config.attack.factory == "label_flip":
        bad = shards[len(shards) - config.attack.options()["workers"] :]
        dataset = with_flipped_labels(dataset, np.concatenate([[], *bad]).astype(np.int64))
    of_base = shards  # the length of a run and its schedule must not change with its workers
    if config.base_workers not in (0, config.workers):
        of_base = config.shards(dataset.train, config.base_workers, config.seed)
    per_epoch = Sampler(of_base, config.batch_size, config.seed).steps_per_epoch
    batch_size, learning_rate = config.rescaled
    steps = config.steps or max(1, round(config.epochs * per_epoch))
    if steps > LARGEST:
        raise ValueError(f"epochs={config.epochs}, {steps:.2g} steps: allowed are up to {LARGEST}")
    rule, options = config.rule.factory, config.rule.options()
    row = rules.row(rule)
    rate = by_step(config.schedule(learning_rate, steps))
    drop = config.drop(per_epoch, total_steps=steps, axis=workers.axis)
    optimizer = optax.chain(config.optimizer(1.0), rate, drop, _attack(config, workers))
    make = lambda **options: rules.compose(optimizer, rule, workers.axis, **options)
    task, until = _task(config, dataset), None
    if config.until is not None:
        until = targets.read(config.until, task.headline, argument="until")
    run = Run(
        workers=workers,
        task=task,
        dataset=dataset,
        tx=make(**options),
        rule=rule,
        shards=shards,
        batch_size=batch_size,
        microbatches=config.microbatches,
        steps=steps,
        seed=config.seed,
        probe_period=row.barrier(options) if "probe_grad" in row.asks(options) else None,
        gradient=None if config.gradient.factory == "plain" else config.gradient,
        shared_noise=config.shared_noise,
        local=config.local,
        batch_norm=config.batch_norm,
        eval_every=config.eval_every,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        revive_every=config.revive_every,
        way=_way(config, next(iter(others), None)),
        until=until,
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
    read = functools.partial(_read_start, config.start, config.start_from)
    return Start(read, config.start_prefix)


def _read_start(path: str, which: str) -> Portable:
    """The model that a run begins from: one of a run's, if the path is a folder, or a file's.

    Raises:
        ValueError: as `load`, if the file cannot be read, or if several processes would open a run.
    """
    source = local_path("start", path)
    origin = {"from": str(source.absolute())}
    try:
        if not source.is_dir():
            model = portable.read(source)
            return model._replace(about=_of_file(model.about) | origin)
        if jax.process_count() > 1:
            raise ValueError(
                "a run cannot be opened by several processes: allowed is a file, which "
                "experiments.export makes of it"
            )
        return load(source).portable(which, **origin)
    except ValueError as error:
        raise ValueError(f"start={path!r}: {error}") from None


def _of_file(about: dict[str, str]) -> dict[str, str]:
    return {name: about[name] for name in ("run", "which", "step") if name in about}


def _way(config: Config, others: Workers | None) -> Way:
    """How the run advances; asynchronous ones begin as others, and are changed by `pace`."""
    chosen = {
        f"round_steps={config.round_steps}": config.round_steps > 1,
        f"overlap={config.overlap!r}": others is not None,
        f"asynchronous={config.asynchronous}": config.asynchronous,
    }
    if sum(chosen.values()) - is_bounded(config) > 1:
        given = ", ".join(name for name, is_set in chosen.items() if is_set)
        raise ValueError(f"{given}: allowed is one of them; a run advances in one of these ways")
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
                f"{name}={getattr(config, name)}: allowed is {default}; the task "
                f"{config.task.factory!r} takes no {name}"
            )
    model = config.model(dataset.input_shape, dataset.num_classes)
    return config.task(model, dataset, **{name: offered[name] for name in takes})


def _attack(config: Config, workers: Workers) -> optax.GradientTransformation:
    """What bad workers bring to the rule's syncs."""
    options = config.rule.options()
    if config.attack.factory not in ("none", "label_flip") and "period" not in options:
        raise ValueError(
            f"attack={config.attack.factory!r}: allowed are 'none' and 'label_flip'; others change "
            f"what is brought to syncs of parameters, and the rule {config.rule.factory!r} has no "
            f"period (local_sgd with period=1 has)"
        )
    return config.attack(workers.axis, options.get("period", 1))
