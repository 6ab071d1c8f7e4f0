"""What a run is made of."""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from jaxdist.data import Dataset, Sampler, UniformSampler
from jaxdist.flatness import Oracle
from jaxdist.names import lookup
from jaxdist.tasks import Task
from jaxdist.workers import Workers

LOCAL = ("vmap", "unroll")
BATCH_NORM = ("local", "average", "reestimate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Every built object that a training run needs.

    Attributes:
        workers: the W workers.
        task: what is learned, of one worker.
        dataset: training and test examples.
        tx: the optimizer with its rule, made for `workers.axis`.
        rule: the rule's name, for the summary and the plots.
        shards: for each worker the indices of its training examples.
        batch_size: examples per worker and step.
        steps: length of the run.
        microbatches: N, the equal parts of a worker's batch whose gradients are computed one after
            the other and averaged before the optimizer, for less memory. What goes by the step is
            as with 1. BatchNorm normalises each part by itself, and its running statistics move N
            times; `gradient` makes an oracle of each part's loss, so that SAM climbs in each part
            and LPF-SGD draws N times as many samples.
        seed: decides the initial parameters, the batches and the augmentation.
        probe_period: the rule gets a probe gradient on the steps with
            `(step + 1) % probe_period == 0`; None where it needs none.
        local: how the gradients of several workers on one device are computed, "vmap" or "unroll".
        batch_norm: the statistics that averaged parameters are evaluated with: "local" (each
            worker's own, on its part of the test set), "average" (the workers' mean) or
            "reestimate" (those of training batches under the averaged parameters).
        gradient: makes an oracle of a loss, as those of `flatness.ORACLES`; None for the plain
            gradient.
        shared_noise: whether all workers perturb alike where the gradient is taken at perturbed
            parameters; else each draws its own noise.
        eval_every: steps between evaluations; 0 for the end only.
        log_every: steps between lines of metrics.
        checkpoint_every: steps between checkpoints; 0 for the end only.
        revive_every: steps between looks for workers that are not finite, which then start again
            from the others; 0 for never.
        round_steps: steps in one compiled program, which then knows what is due in them.
        beside: as many workers on other devices of the same processes, where what the rule launches
            is computed while the steps go on; None: in the program of the steps.
        trigger: count-triggered rounds of so many local steps a worker on average, then a sync;
            None: all workers take the same steps.
        grants: the local steps of each worker in each such round, int `[rounds, W]`; None: as many
            as it is fast, which the processes count while they run.
        virtual_seconds: when each step (or count-triggered round) is done on a virtual clock, in
            seconds from the start; None without one.
        patience: seconds that a process waits at a count-triggered sync for the others.
        tensorboard: writes TensorBoard events besides the JSON lines.
        elastic: whether it may go on from a checkpoint of another number of workers.
        description: the configuration as plain JSON types; a checkpoint resumes only under an
            equal one, but for what `checkpoint.MAY_CHANGE` names.

    Raises:
        ValueError: for a value that is not allowed, or a batch larger than a worker's shard.
    """

    workers: Workers
    task: Task
    dataset: Dataset
    tx: optax.GradientTransformationExtraArgs
    rule: str
    shards: list[np.ndarray]
    batch_size: int
    steps: int
    microbatches: int = 1
    seed: int = 0
    probe_period: int | None = None
    local: str = "vmap"
    batch_norm: str = "average"
    gradient: Callable[..., Oracle] | None = None
    shared_noise: bool = False
    eval_every: int = 100
    log_every: int = 10
    checkpoint_every: int = 500
    revive_every: int = 0
    round_steps: int = 1
    beside: Workers | None = None
    trigger: int | None = None
    grants: np.ndarray | None = None
    virtual_seconds: np.ndarray | None = None
    patience: float = 600.0
    tensorboard: bool = False
    elastic: bool = False
    description: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        least = {"batch_size": 1, "steps": 1, "log_every": 1, "eval_every": 0, "round_steps": 1}
        least |= {"checkpoint_every": 0, "revive_every": 0, "seed": 0, "microbatches": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)}: allowed are integers from {low}")
        check_microbatches(self.batch_size, self.microbatches)
        if self.probe_period is not None and self.probe_period < 1:
            raise ValueError(f"probe_period={self.probe_period}: allowed are integers from 1, None")
        for name, allowed in {"local": LOCAL, "batch_norm": BATCH_NORM}.items():
            lookup(dict.fromkeys(allowed), getattr(self, name), name)
        if len(self.shards) != self.workers.num:
            raise ValueError(
                f"shards has {len(self.shards)} entries; there must be one for each of the "
                f"{self.workers.num} workers"
            )
        if self.elastic and (self.trigger is not None or self.virtual_seconds is not None):
            raise ValueError(
                "elastic=True with a clock or count-triggered rounds: these are of one number of "
                "workers; give one of the two"
            )
        if self.tensorboard and importlib.util.find_spec("tensorboardX") is None:
            raise ValueError("tensorboard=True needs tensorboardX: pip install tensorboardX")
        if self.batch_norm == "reestimate" and self.task.statistics is None:
            raise ValueError("batch_norm='reestimate' needs a task with `statistics`")
        self._check_ways()
        Sampler(self.shards, self.batch_size, self.seed)  # checks the batch against the shards

    def _check_ways(self) -> None:
        """Checks what decides how the run advances."""
        chosen = {
            "round_steps": self.round_steps > 1,
            "beside": self.beside is not None,
            "trigger": self.trigger is not None,
        }
        if sum(chosen.values()) > 1:
            both = " and ".join(name for name, is_set in chosen.items() if is_set)
            raise ValueError(f"{both} are given; a run advances in one of these ways")
        if self.beside is not None:
            meshes = self.workers.mesh, self.beside.mesh
            shapes = [dict(mesh.shape) for mesh in meshes]
            devices = [list(mesh.devices.flat) for mesh in meshes]
            shared = set(devices[0]) & set(devices[1])
            if self.beside.num != self.workers.num or shapes[0] != shapes[1] or shared:
                raise ValueError(
                    f"beside has {self.beside.num} workers on {shapes[1]}, {len(shared)} devices "
                    f"of it shared; there must be {self.workers.num} on {shapes[0]}, on others"
                )
            if any(a.process_index != b.process_index for a, b in zip(*devices, strict=True)):
                raise ValueError("beside: each of its devices must be in the process of its worker")
        if self.trigger is None:
            if self.grants is not None:
                raise ValueError("grants are given without trigger; give both or neither")
        elif self.trigger < 1 or self.steps % self.trigger:
            raise ValueError(
                f"trigger={self.trigger}: allowed are integers from 1 that divide the steps, "
                f"{self.steps}"
            )
        elif self.grants is not None:
            grants, shape = np.asarray(self.grants), (self.steps // self.trigger, self.workers.num)
            whole = grants.shape == shape and grants.dtype.kind in "iu"
            if not whole or (grants < 0).any() or not grants.any(1).all():
                raise ValueError(
                    f"grants is {self.grants}; it must hold the local steps of [rounds, W] = "
                    f"{list(shape)}, integers of at least 0 and not all 0 in a round"
                )
            object.__setattr__(self, "grants", grants)
        advances = self.steps // (self.trigger or 1)
        if self.virtual_seconds is not None and len(self.virtual_seconds) != advances:
            raise ValueError(
                f"virtual_seconds has {len(self.virtual_seconds)} entries; there must be one for "
                f"each of {advances} steps (or rounds)"
            )
        if not self.patience > 0:
            raise ValueError(f"patience={self.patience}: allowed are seconds above 0")

    @functools.cached_property
    def sampler(self) -> Sampler:
        """Which training examples each worker sees at each step."""
        return Sampler(self.shards, self.batch_size, self.seed)

    @functools.cached_property
    def probe_sampler(self) -> UniformSampler:
        """Which examples of the whole training set each worker sees in its probe batches."""
        num = len(self.dataset.train)
        return UniformSampler(num, self.workers.num, self.batch_size, self.seed)

    @property
    def batch_sharding(self) -> jax.sharding.Sharding:
        """How a batch `[W, B, ...]` lies on the devices."""
        rows = jax.ShapeDtypeStruct((self.workers.num, self.batch_size), np.int32)
        return self.workers.shardings(rows)


def check_microbatches(batch_size: int, microbatches: int) -> None:
    """Raises a ValueError unless the batch can be divided into so many equal parts."""
    if batch_size % microbatches:
        raise ValueError(
            f"batch_size={batch_size} with microbatches={microbatches}: a worker's batch must "
            f"divide into so many equal parts"
        )
