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
from jaxdist.training.start import Start
from jaxdist.training.targets import Target
from jaxdist.training.way import Way
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
        way: how it advances, one of `jaxdist.training.ways`.
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
        virtual_seconds: when each unit of the way (a step, or a round of unequal steps) is done on
            a virtual clock, in seconds from the start; None without one.
        until: ends the run at the first evaluation that reaches it; None for all its steps.
        start: given parameters to begin from; None for the initialiser's.
        tensorboard: writes TensorBoard events besides the JSON lines.
        wandb: the project of Weights & Biases that gets the lines as well; None for none.
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
    way: Way
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
    virtual_seconds: np.ndarray | None = None
    until: Target | None = None
    start: Start | None = None
    tensorboard: bool = False
    wandb: str | None = None
    elastic: bool = False
    description: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        least = {"batch_size": 1, "steps": 1, "log_every": 1, "eval_every": 0}
        least |= {"checkpoint_every": 0, "revive_every": 0, "seed": 0, "microbatches": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)}: allowed are integers from {low}")
        check_microbatches(self.batch_size, self.microbatches)
        if self.probe_period is not None and self.probe_period < 1:
            raise ValueError(f"probe_period={self.probe_period}: allowed are integers from 1, None")
        for name, allowed in {"local": LOCAL, "batch_norm": BATCH_NORM}.items():
            lookup(dict.fromkeys(allowed), getattr(self, name), name)
        if self.until is not None and not self.eval_every:
            raise ValueError("eval_every=0 with until: allowed are integers from 1")
        if len(self.shards) != self.workers.num:
            raise ValueError(
                f"len(shards)={len(self.shards)}: allowed is {self.workers.num}, one a worker"
            )
        if self.elastic and not (self.way.equal_steps and self.virtual_seconds is None):
            raise ValueError(
                "elastic=True with a clock or count-triggered rounds: allowed is one of the two; "
                "the latter are of one number of workers"
            )
        if self.tensorboard and importlib.util.find_spec("tensorboardX") is None:
            raise ValueError("tensorboard=True needs tensorboardX: pip install tensorboardX")
        if self.wandb is not None:
            check_wandb(self.wandb)
        if self.batch_norm == "reestimate" and self.task.statistics is None:
            raise ValueError("batch_norm='reestimate': allowed with it are tasks with `statistics`")
        self.way.check(self)
        advances = self.steps // self.way.unit
        if self.virtual_seconds is not None and len(self.virtual_seconds) != advances:
            raise ValueError(
                f"len(virtual_seconds)={len(self.virtual_seconds)}: allowed is {advances}, one for "
                f"each step (or round)"
            )
        Sampler(self.shards, self.batch_size, self.seed)  # checks the batch against the shards

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


def check_wandb(project: str) -> None:
    """Raises a ValueError unless the lines can go to a project of Weights & Biases."""
    if not project or set(project) & set("/\\#?%:"):
        raise ValueError(f"wandb={project!r}: allowed are names of a project without /\\#?%:")
    if importlib.util.find_spec("wandb") is None:
        raise ValueError(f"wandb={project!r} needs wandb: pip install wandb")


def check_microbatches(batch_size: int, microbatches: int) -> None:
    """Raises a ValueError unless the batch can be divided into so many equal parts."""
    if batch_size % microbatches:
        raise ValueError(
            f"batch_size={batch_size} with microbatches={microbatches}: allowed are batches of a "
            f"worker that divide into so many equal parts"
        )
