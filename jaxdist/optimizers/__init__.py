"""Optimizers of one worker: a schedule that reads the trajectory, and two for log-linear models.

Plain optax transformations. `autodrop` goes after any optimizer; `spfb` and `lspfb` train models
whose logits are linear in the parameters, and nothing else.
"""

from jaxdist.optimizers.autodrop import AutoDropState, autodrop
from jaxdist.optimizers.log_linear import Bound, partition_bound
from jaxdist.optimizers.lspfb import LspfbState, lspfb
from jaxdist.optimizers.spfb import SpfbState, batch_majorization, spfb

__all__ = [
    "AutoDropState",
    "Bound",
    "LspfbState",
    "SpfbState",
    "autodrop",
    "batch_majorization",
    "lspfb",
    "partition_bound",
    "spfb",
]
