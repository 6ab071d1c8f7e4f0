"""A picture of topologies: the graphs, their mixing matrices, and how fast they mix."""

import os
from collections.abc import Sequence
from typing import Any

import networkx as nx
import numpy as np

from jaxdist.files import write_figure
from jaxdist.topology import mixing
from jaxdist.topology.core import Topology

_STEPS, _ROUNDING = 32, 1e-16


def plot(
    topologies: Topology | Sequence[Topology], path: str | os.PathLike[str] | None = None
) -> Any:
    """Draws each graph and its mixing matrix, and the consensus distance that theory allows.

    Edges have one colour per round. The curve is ||W_s ... W_1 - J||_2: what is left, at worst, of
    the distance from the mean after s mixings; at 1e-16 the mean is exact but for rounding.

    Args:
        topologies: one, or those of a sequence in turn.
        path: where to save the picture, if given; the ending decides the format.

    Returns:
        A matplotlib `Figure`, which notebooks show.

    Raises:
        ValueError: if there is no topology, or they differ in the number of workers.

    Example:
        >>> from jaxdist import topology
        >>> figure = plot(topology.make("al_dsgd(graph=2), al_dsgd(graph=1)", 8))
        >>> len(figure.axes)
        7
    """
    # imported here: mixing needs no pictures
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    topologies = [topologies] if isinstance(topologies, Topology) else list(topologies)
    if len({topology.num_workers for topology in topologies}) != 1:
        raise ValueError(
            f"topologies={topologies}: allowed are one or more, of as many workers each"
        )
    rows = len(topologies)
    figure = Figure(figsize=(12.8, 3.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows, 3)
    for row, topology in enumerate(topologies):
        _graph(figure.add_subplot(grid[row, 0]), topology)
        axes = figure.add_subplot(grid[row, 1])
        figure.colorbar(_matrix(axes, topology), ax=axes, label="weight")
    _decay(figure.add_subplot(grid[:, 2]), topologies)
    if path is not None:
        write_figure(path, figure)
    return figure


def _graph(axes, topology):
    positions = nx.circular_layout(topology.graph)
    bent = {"arrows": True, "connectionstyle": "arc3,rad=0.12"} if topology.directed else {}
    for r, source in enumerate(topology.rounds):
        edges = [(j, i) for i, j in enumerate(source.tolist()) if j >= 0]
        nx.draw_networkx_edges(
            topology.graph, positions, edges, ax=axes, edge_color=f"C{r % 10}", width=2, **bent
        )
    nx.draw_networkx_nodes(
        topology.graph, positions, ax=axes, node_color="white", edgecolors="black"
    )
    nx.draw_networkx_labels(topology.graph, positions, ax=axes, font_size=9)
    count = len(topology.rounds)
    axes.set_title(f"{topology.name}: {count} round{'s' * (count != 1)}")
    axes.set_aspect("equal")
    axes.margins(0.15)
    axes.axis("off")


def _matrix(axes, topology):
    limit = abs(topology.matrix).max()
    image = axes.imshow(topology.matrix, cmap="RdBu", vmin=-limit, vmax=limit)
    axes.set_title(f"contraction {topology.contraction:.3f}")
    axes.set_xlabel("sends")
    axes.set_ylabel("receives")
    axes.locator_params(integer=True, min_n_ticks=1)
    return image


def _decay(axes, topologies):
    product, left = np.eye(topologies[0].num_workers), []
    for s in range(_STEPS):
        product = topologies[s % len(topologies)].matrix @ product
        left.append(mixing.contraction(product))
    axes.semilogy(range(_STEPS + 1), [1.0, *np.maximum(left, _ROUNDING)], ".-")
    axes.set_xlim(0, _STEPS)
    axes.set_title("consensus")
    axes.set_xlabel("mixing")
    axes.set_ylabel("distance from the mean left, at worst")
    axes.grid(alpha=0.3)
