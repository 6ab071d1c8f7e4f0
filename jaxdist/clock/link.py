"""How long a collective takes on a link."""

import dataclasses
from typing import Literal

from jaxdist.checks import check_above, check_least
from jaxdist.traffic import Collective


@dataclasses.dataclass(frozen=True)
class Link:
    """What connects the workers: a ring of equal links, or a server in the middle.

    With n members, b bytes and m messages, a latency of l seconds and B bytes a second:

                                             ring                   server
        all-reduce                           2 (n - 1) (l + b/n/B)  2 l + 2 n b / B
        all-to-all                             (n - 1) (l + b/n/B)  2 l + 2 n b / B
        reduce-scatter, all-gather             (n - 1) (l + b/n/B)  2 l + (n + 1) b / B
        collective-permute                              l + b / B   2 l + 2 m b / B

    On the ring the messages of a collective-permute do not share a link; the server's bandwidth is
    shared by all that goes in and out, of all groups. A collective in which nothing moves takes no
    time on the ring, and a collective-permute without messages none on either.

    Attributes:
        latency: l, seconds a message.
        bandwidth: B, bytes a second, of each link or of the server.
        kind: "ring" or "server".

    Raises:
        ValueError: if `latency` is negative, `bandwidth` not above 0, either not finite, or `kind`
            unknown.

    Example:
        >>> link = Link(latency=1e-3, bandwidth=1e9)
        >>> round(link.seconds(Collective("all-reduce", 400_000_000, members=8)), 6)
        0.714
    """

    latency: float
    bandwidth: float
    kind: Literal["ring", "server"] = "ring"

    def __post_init__(self):
        check_least("latency", self.latency)
        check_above("bandwidth", self.bandwidth)
        if self.kind not in ("ring", "server"):
            raise ValueError(f"kind={self.kind!r}: allowed are 'ring', 'server'")

    def seconds(self, collective: Collective) -> float:
        """How long the collective takes once all that take part are there, in seconds.

        Raises:
            ValueError: if its kind is unknown.
        """
        kind, n = collective.kind, collective.members
        if kind not in _RING:
            raise ValueError(f"the collective's kind={kind!r}: allowed are {[*_RING]}")
        if kind == "collective-permute" and not collective.messages:
            return 0.0
        if self.kind == "ring":
            messages, share = _RING[kind](n), 1 if kind == "collective-permute" else n
            return float(messages * (self.latency + collective.bytes / share / self.bandwidth))
        copies = _SERVER[kind](n, collective.messages) * (len(collective.groups) or 1)
        return float(2 * self.latency + copies * collective.bytes / self.bandwidth)


# messages that follow each other
_RING = {
    "all-reduce": lambda n: 2 * (n - 1),
    "reduce-scatter": lambda n: n - 1,
    "all-gather": lambda n: n - 1,
    "all-to-all": lambda n: n - 1,
    "collective-permute": lambda n: 1,
}
# how many times the array goes in or out
_SERVER = {
    "all-reduce": lambda n, m: 2 * n,
    "reduce-scatter": lambda n, m: n + 1,
    "all-gather": lambda n, m: n + 1,
    "all-to-all": lambda n, m: 2 * n,
    "collective-permute": lambda n, m: 2 * m,
}
