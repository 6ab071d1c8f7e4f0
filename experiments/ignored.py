"""Flags that would change nothing with the others: whoever gave one meant something else."""

from collections.abc import Collection, Iterator

import jax

from jaxdist.checks import local_path
from jaxdist.config import Config
from jaxdist.training import Run

_WITHOUT_NOISE = ("plain", "sam", "asam")


def check(config: Config, run: Run, given: Collection[str]) -> None:
    """Checks that every flag that was given has an effect.

    Args:
        config: the configuration with all flags.
        run: what is built of it.
        given: the names of the flags. What the configuration itself holds is not looked at.

    Raises:
        ValueError: for the first flag without an effect; with the reason.
    """
    for names, why in _without_effect(config, run):
        for name in sorted({*names} & {*given}):
            raise ValueError(f"--{name} would change nothing: {why}")


def _without_effect(config: Config, run: Run) -> Iterator[tuple[Collection[str], str]]:
    clock = config.clock
    if config.steps is not None:
        yield ["epochs"], f"the run has --steps {config.steps} (--steps None leaves it to --epochs)"
    if clock.budget:
        yield ["epochs", "steps"], f"--clock.budget {clock.budget:g} decides the run's length"
    if not clock.step_seconds:
        flags = [f"clock.{name}" for name in vars(clock) if name != "step_seconds"]
        yield flags, "there is no virtual clock without --clock.step_seconds"
    if not config.base_workers:
        yield ["rescale"], "the run is not elastic without --base_workers"
    if (gradient := config.gradient.factory) in _WITHOUT_NOISE:
        yield ["shared_noise"], f"gradient={gradient} perturbs at random nowhere (lpf does)"
    if not config.optimizer.options().get("momentum", 1):
        yield ["optimizer.nesterov", "optimizer.no_nesterov"], "momentum is 0"
    if config.start is None:
        yield ["start_from", "start_prefix"], "the run begins from its initialiser without --start"
    elif not local_path("start", config.start).is_dir():
        yield ["start_from"], f"--start {config.start} is a file, of one model"
    if not jax.eval_shape(run.task.init, jax.random.key(0))[1]:
        yield ["batch_norm"], f"the model {config.model.factory} has no BatchNorm"
