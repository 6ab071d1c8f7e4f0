"""Communication graphs: who mixes with whom, with which weights, in which permutations.

`make("torus(rows=2)", 8)` gives the topologies that a rule goes through; `TOPOLOGIES` holds the
names, and any `networkx` graph will do as well.
"""

from jaxdist.topology import matcha
from jaxdist.topology.coloring import matchings
from jaxdist.topology.core import Topology
from jaxdist.topology.mixing import WEIGHTS
from jaxdist.topology.picture import plot
from jaxdist.topology.specs import TOPOLOGIES, Spec, check_connected, check_spec, contraction, make

__all__ = [
    "TOPOLOGIES",
    "WEIGHTS",
    "Spec",
    "Topology",
    "check_connected",
    "check_spec",
    "contraction",
    "make",
    "matcha",
    "matchings",
    "plot",
]
