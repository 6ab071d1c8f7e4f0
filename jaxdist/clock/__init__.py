"""A deterministic virtual clock: how fast workers are, how long links take, who waits for whom.

Seconds and bytes. `simulate` runs what a rule sends, as `Traffic.of` counts it, on given speeds and
a given link; nothing is trained.
"""

from jaxdist.clock.asynchronous import Arrivals, DelayedTimeline, arrivals, delays
from jaxdist.clock.link import Link
from jaxdist.clock.picture import draw, plot
from jaxdist.clock.schedule import grants, simulate, simulate_rounds
from jaxdist.clock.speeds import (
    Speeds,
    constant,
    log_normal,
    measured,
    with_pauses,
    with_stragglers,
)
from jaxdist.clock.timeline import Timeline

__all__ = [
    "Arrivals",
    "DelayedTimeline",
    "Link",
    "Speeds",
    "Timeline",
    "arrivals",
    "constant",
    "delays",
    "draw",
    "grants",
    "log_normal",
    "measured",
    "plot",
    "simulate",
    "simulate_rounds",
    "with_pauses",
    "with_stragglers",
]
