"""What a run will do on a machine that is not there, read from the programs compiled for it.

The compiler of a TPU slice or of a host of GPUs needs none of them: `target` describes the machine,
`preflight` compiles a run for it, and the `Report` holds what the programs need and send, with an
estimate of the times from the chips' peaks.
"""

from jaxdist.preflight.estimate import Estimate, estimate
from jaxdist.preflight.hlo import Sending, sendings
from jaxdist.preflight.programs import Memory, Program
from jaxdist.preflight.report import Report, preflight
from jaxdist.preflight.targets import CHIPS, Chip, Target, target

__all__ = [
    "CHIPS",
    "Chip",
    "Estimate",
    "Memory",
    "Program",
    "Report",
    "Sending",
    "Target",
    "estimate",
    "preflight",
    "sendings",
    "target",
]
