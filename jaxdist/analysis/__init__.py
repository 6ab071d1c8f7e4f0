"""Analyses of what was trained: the generalisation error at other sizes of the training set."""

from jaxdist.analysis.error_curve import gaussian_error, nn_distance, nn_error_curve
from jaxdist.analysis.error_fit import Density, Fit, fit_dim_delta, gaussian_density

__all__ = [
    "Density",
    "Fit",
    "fit_dim_delta",
    "gaussian_density",
    "gaussian_error",
    "nn_distance",
    "nn_error_curve",
]
