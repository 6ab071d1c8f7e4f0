"""Methods that look for flat minima: gradient oracles of one worker, and optax wrappers.

An oracle stands where `jax.value_and_grad` stands in a training step, communicates nothing and goes
with any rule; all have the signature `base.Oracle`. `ORACLES` names them all. The wrappers do the
same around an optax optimizer, for training loops that are not to change but for `grad_fn=`.
"""

from collections.abc import Callable

from jaxdist.flatness.base import Oracle
from jaxdist.flatness.entropy import entropy_sgd
from jaxdist.flatness.lpf import lpf, lpf_value_and_grad
from jaxdist.flatness.noise import cosine_increase_schedule, deviation
from jaxdist.flatness.sam import asam_value_and_grad, sam, sam_value_and_grad
from jaxdist.flatness.smooth_out import smooth_out_value_and_grad

ORACLES: dict[str, Callable[..., Oracle]] = {
    "lpf": lpf_value_and_grad,
    "sam": sam_value_and_grad,
    "asam": asam_value_and_grad,
    "smooth_out": smooth_out_value_and_grad,
}

__all__ = [
    "ORACLES",
    "Oracle",
    "asam_value_and_grad",
    "cosine_increase_schedule",
    "deviation",
    "entropy_sgd",
    "lpf",
    "lpf_value_and_grad",
    "sam",
    "sam_value_and_grad",
    "smooth_out_value_and_grad",
]
