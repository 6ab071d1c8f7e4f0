"""An estimate of times from a chip's peaks: a roofline."""

import dataclasses
from collections.abc import Sequence

from jaxdist.clock import Link
from jaxdist.preflight.hlo import Sending
from jaxdist.preflight.programs import Program
from jaxdist.preflight.targets import Chip


@dataclasses.dataclass(frozen=True)
class Estimate:
    """How long a program takes at best.

    A chip computes for max(flops / peak, bytes accessed / bandwidth); what it sends takes its bytes
    over the bandwidth of the links, and the messages' latency. An asynchronous collective with
    matrix products between its start and its end is hidden behind them as far as these take as
    long, the time of the program spread evenly over its products; what is left, and all others,
    come on top. Nothing is ever faster; how much slower it is, only the machine can tell.

    Attributes:
        matrix: seconds of the matrix units, flops / peak.
        memory: seconds of the memory, bytes accessed / bandwidth.
        inside: seconds of what is sent inside a slice or host.
        between: seconds of what is sent between them.
        exposed: seconds of what is sent that nothing hides.
    """

    matrix: float
    memory: float
    inside: float
    between: float
    exposed: float

    @property
    def seconds(self) -> float:
        """Of the program: what it computes, and what it sends that nothing hides."""
        return max(self.matrix, self.memory) + self.exposed

    @property
    def share_of_peak(self) -> float:
        """Of the matrix units' peak, what the program could reach at most."""
        return self.matrix / self.seconds if self.seconds else 0.0


def estimate(program: Program, chip: Chip) -> Estimate:
    """The roofline of a program on a chip."""
    matrix, memory = program.flops / chip.flops, program.accessed / chip.bandwidth
    compute = max(matrix, memory)
    each = compute / max(program.products, 1)
    times = [(sending, seconds(sending, chip)) for sending in program.sendings]
    hidden = lambda sending: each * (sending.overlapped or 0)
    return Estimate(
        matrix=matrix,
        memory=memory,
        inside=sum(t for sending, t in times if not sending.between),
        between=sum(t for sending, t in times if sending.between),
        exposed=sum(max(t - hidden(sending), 0) for sending, t in times),
    )


def seconds(sending: Sending, chip: Chip) -> float:
    """How long a collective takes on the links that it goes over, as rings of them."""
    return link(chip, sending.between).seconds(sending.collective)


def link(chip: Chip, between: bool) -> Link:
    """The chips' links as `jaxdist.clock` has them."""
    if between:
        return Link(latency=chip.latency_between, bandwidth=chip.between)
    return Link(latency=chip.latency, bandwidth=chip.inside)


def sent(sendings: Sequence[Sending], between: bool) -> int:
    """The bytes that a chip sends over one kind of links."""
    return sum(s.collective.sent for s in sendings if s.between == between)
