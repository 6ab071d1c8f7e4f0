"""Graphs, their mixing matrices and rounds, and MATCHA's activation."""

import itertools
import logging

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdist import topology
from jaxdist.topology import TOPOLOGIES, WEIGHTS, Topology, make

DEGREES = {1: [3, 5, 2, 4, 1, 2, 3, 4], 2: [4, 1, 4, 3, 5, 3, 2, 2], 3: [3, 4, 2, 5, 4, 2, 3, 1]}
EDGES = {100: 12, 84.6: 10, 69.2: 9, 53.8: 7, 38.5: 5}

graphs = st.builds(
    lambda num, p, seed: nx.gnp_random_graph(num, p, seed=seed),
    st.integers(2, 12),
    st.floats(0.05, 1),
    st.integers(0, 2**31),
)
connected = graphs.filter(nx.is_connected)
digraphs = st.builds(
    lambda num, p, seed: nx.gnp_random_graph(num, p, seed=seed, directed=True),
    st.integers(1, 10),
    st.floats(0, 1),
    st.integers(0, 2**31),
)


def one(spec, num):
    (made,) = make(spec, num)
    return made


def assert_rounds(made):
    """Each edge is in one round; in a round each worker sends once and receives once at most."""
    carried = []
    for source in made.rounds:
        receivers = np.flatnonzero(source >= 0)
        senders = source[receivers]
        assert len(set(senders.tolist())) == len(senders) > 0
        if not made.directed:
            np.testing.assert_array_equal(source[senders], receivers)
        carried += zip(senders.tolist(), receivers.tolist(), strict=True)
    assert sorted(carried) == sorted(nx.DiGraph(made.graph).edges)


def from_rounds(made):
    """The mixing matrix as the rounds carry it out."""
    matrix = np.diag(made.matrix.diagonal())
    for source, weights in zip(made.rounds, made.round_weights, strict=True):
        for i, j in enumerate(source):
            if j >= 0:
                matrix[i, j] += weights[i]
            else:
                assert weights[i] == 0
    return matrix


def eigenvalues(made):
    return np.linalg.eigvalsh(nx.laplacian_matrix(made.graph).toarray().astype(float))


# Every named topology


@pytest.mark.parametrize("num", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("name", sorted(TOPOLOGIES))
def test_every_topology(name, num):
    if name == "al_dsgd":
        num = 8
    sequence = make("random_regular(degree=2)" if (name, num) == ("random_regular", 4) else name, num)
    topology.check_connected(sequence)
    for made in sequence:
        assert made.num_workers == num
        assert made.doubly_stochastic
        assert made.column_stochastic
        assert made.symmetric == np.allclose(made.matrix, made.matrix.T)
        assert_rounds(made)
        np.testing.assert_array_equal(from_rounds(made), made.matrix)
        np.testing.assert_array_equal(made.degrees, (made.matrix != 0).sum(1) - (np.diag(made.matrix) != 0))
        assert made.spectral_gap == 1 - made.contraction
    if num == 1:
        assert sequence[0].matrix.tolist() == [[1.0]]
        assert sequence[0].rounds == ()
        assert sequence[0].round_weights.shape == (0, 1)
    assert topology.contraction(sequence) < 1
