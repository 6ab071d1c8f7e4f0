"""The graphs of AL-DSGD's experiments, with their matchings."""

import itertools

import networkx as nx

from jaxdist.topology.core import Topology

# density in percent, as labelled by the authors -> graphs 1, 2, 3: matchings, an edge "ij" each
_GRAPHS = {
    100: (
        "15 67 04 23, 17 36, 10 37 56, 12 70, 31",
        "46 52 31 70, 42 05, 43 02 65, 47 23, 04",
        "23 04 67 15, 43 10, 63 14 02, 35 46, 31",
    ),
    84.6: (
        "15 04 23, 17 36, 10 37 56, 12 70",
        "46 31 70, 42 05, 43 02 65, 47 23",
        "23 67 15, 43 10, 63 14 02, 35 46",
    ),
    69.2: (
        "15 04 23, 36, 10 37 56, 12 70",
        "46 31 70, 05, 43 02 65, 47 23",
        "23 67 15, 10, 63 14 02, 35 46",
    ),
    53.8: (
        "04 23, 36, 10 37 56, 12",
        "31 70, 05, 43 02 65, 47",
        "67 15, 10, 63 14 02, 35",
    ),
    38.5: (
        "23, 36, 10 56, 12",
        "70, 05, 43 65, 47",
        "15, 10, 63 02, 35",
    ),
}


def al_dsgd(
    num: int, *, graph: int = 1, density: float = 100, weights: str = "best_constant"
) -> Topology:
    """A graph of AL-DSGD's experiments: 8 workers, 12 edges, 5 matchings.

    Graphs 2 and 3 are graph 1 relabelled, so that workers with many neighbours get few: as a
    sequence, "al_dsgd(graph=2), al_dsgd(graph=1)", they mix faster than any one of them. The
    densities are the authors' labels; the graphs have 12, 10, 9, 7 and 5 edges. At 38.5 each graph
    falls into 3 components, and only the union of the sequence is connected.

    Args:
        num: the number of workers, 8.
        graph: the number of the graph, 1, 2 or 3.
        density: the authors' label, in percent: 100, 84.6, 69.2, 53.8 or 38.5.
        weights: "metropolis", "best_constant" or "uniform" (see `Topology.from_graph`).

    Raises:
        ValueError: if there are not 8 workers, or `graph` or `density` is none of these.

    Example:
        >>> al_dsgd(8).degrees.tolist()
        [3, 5, 2, 4, 1, 2, 3, 4]

    Reference:
        Read in code: HectorHHZ/Adjacent_Leader_Dencentralized_SGD MACHA_util_triple.py @6da2baa.
    """
    if num != 8:
        raise ValueError(f"num={num}: allowed for al_dsgd is 8, the workers of its graphs")
    if density not in _GRAPHS:
        raise ValueError(f"density={density!r}: allowed are {', '.join(map(str, _GRAPHS))}")
    if graph not in (1, 2, 3):
        raise ValueError(f"graph={graph!r}: allowed are 1, 2 or 3")
    rounds = [
        [(int(edge[0]), int(edge[1])) for edge in matching.split()]
        for matching in _GRAPHS[density][graph - 1].split(",")
    ]
    edges = nx.empty_graph(num)
    edges.add_edges_from(itertools.chain(*rounds))
    name = f"al_dsgd(graph={graph}, density={density:g})"
    return Topology.from_graph(edges, weights=weights, matchings=rounds, name=name)
