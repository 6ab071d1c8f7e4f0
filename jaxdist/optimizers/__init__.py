"""Optimizers of one worker: a schedule, a fresh start in every round, two for log-linear models.

Plain optax transformations. `autodrop` goes after any optimizer, `reset_every` around one; `spfb`
and `lspfb` train models whose logits are linear in the parameters, and nothing else.
"""

from jaxdist.optimizers.autodrop import AutoDropState, autodrop
from jaxdist.optimizers.log_linear import Bound, partition_bound
from jaxdist.optimizers.lspfb import LspfbState, lspfb
from jaxdist.optimizers.spfb import SpfbState, batch_majorization, spfb
from jaxdist.rules.reset import ResetEveryState, reset_every

__all__ = [
    "AutoDropState",
    "Bound",
    "LspfbState",
    "ResetEveryState",
    "SpfbState",
    "autodrop",
    "batch_majorization",
    "lspfb",
    "partition_bound",
    "reset_every",
    "spfb",
]
