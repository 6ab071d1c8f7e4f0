"""Sharpness: how fast the loss rises around the parameters, in one signature.

`measure(loss, params, *, key, data, <options>) -> Measured(value, error)`; `MEASURES` names them
all. Larger is sharper, for all but `pac_bayes_sigma`. Every measure runs compiled, on one worker's
parameters; `jax.vmap` takes it to stacked workers, and sharded `batches` split it over devices.
"""

from collections.abc import Callable

from jaxdist.sharpness.balance import balance, balance_scales
from jaxdist.sharpness.entropy import local_entropy, local_entropy_gradient, shannon_entropy
from jaxdist.sharpness.gradient import fisher_rao, gradient_norm
from jaxdist.sharpness.hessian import effective_dimension, frobenius_norm, largest_eigenvalue, trace
from jaxdist.sharpness.pac_bayes import pac_bayes, pac_bayes_sigma
from jaxdist.sharpness.perturbation import epsilon_sharpness, lpf
from jaxdist.sharpness.picture import plot
from jaxdist.sharpness.problem import Measured, Problem, batches
from jaxdist.sharpness.slices import Barrier, Slice, barrier, direction, loss_slice

MEASURES: dict[str, Callable[..., Measured]] = {
    measure.__name__: measure
    for measure in (
        lpf,
        epsilon_sharpness,
        pac_bayes,
        pac_bayes_sigma,
        fisher_rao,
        gradient_norm,
        shannon_entropy,
        local_entropy,
        local_entropy_gradient,
        largest_eigenvalue,
        trace,
        frobenius_norm,
        effective_dimension,
    )
}

__all__ = [
    "MEASURES",
    "Barrier",
    "Measured",
    "Problem",
    "Slice",
    "balance",
    "balance_scales",
    "barrier",
    "batches",
    "direction",
    "loss_slice",
    "plot",
    *MEASURES,
]
