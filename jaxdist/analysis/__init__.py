"""Analyses of what was trained: the generalisation error at other sizes of the training set, and
how well a measure orders models by how they generalise.
"""

from jaxdist.analysis.error_curve import gaussian_error, nn_distance, nn_error_curve
from jaxdist.analysis.error_fit import Density, Fit, fit_dim_delta, gaussian_density
from jaxdist.analysis.rank_correlation import granulated_kendall, kendall

__all__ = [
    "Density",
    "Fit",
    "fit_dim_delta",
    "gaussian_density",
    "gaussian_error",
    "granulated_kendall",
    "kendall",
    "nn_distance",
    "nn_error_curve",
]
