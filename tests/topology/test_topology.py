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
    sequence = make(name, num)
    topology.check_connected(sequence)
    for made in sequence:
        assert made.num_workers == num
        assert made.doubly_stochastic
        assert made.column_stochastic
        assert made.symmetric == np.allclose(made.matrix, made.matrix.T)
        assert_rounds(made)
        np.testing.assert_array_equal(from_rounds(made), made.matrix)
        assert made.degrees.sum() == made.matrix[~np.eye(num, dtype=bool)].astype(bool).sum()
        assert made.spectral_gap == 1 - made.contraction
    if num == 1:
        assert sequence[0].matrix.tolist() == [[1.0]]
        assert sequence[0].rounds == ()
        assert sequence[0].round_weights.shape == (0, 1)
    assert topology.contraction(sequence) < 1


@pytest.mark.parametrize(
    ("spec", "num", "edges", "degree", "rounds"),
    [
        ("ring", 8, 8, 2, 2),
        ("ring", 5, 5, 2, 3),
        ("torus", 16, 32, 4, 4),
        ("torus(rows=2)", 8, 12, 3, 3),
        ("torus(rows=1)", 5, 5, 2, 3),
        ("star", 6, 5, 5, 5),
        ("complete", 8, 28, 7, 7),
        ("complete", 7, 21, 6, 7),
        ("bipartite", 7, 12, 4, 4),
        ("hypercube", 16, 32, 4, 4),
        ("exponential", 8, 24, 3, 3),
        ("exponential", 6, 18, 3, 3),
        ("random_regular(degree=4, seed=3)", 10, 20, 4, 4),
        ("small_world(k=4, p=0.3)", 12, 24, None, None),
        ("erdos_renyi(p=1.0)", 6, 15, 5, 5),
    ],
)
def test_sizes(spec, num, edges, degree, rounds):
    made = one(spec, num)
    assert made.graph.number_of_edges() == edges
    assert degree is None or made.degrees.max() == degree
    assert rounds is None or len(made.rounds) == rounds


@pytest.mark.parametrize("rows", [2, 3, 4])
def test_torus_neighbours(rows):
    columns = 12 // rows
    made = one(f"torus(rows={rows})", 12)
    for i in range(12):
        r, c = divmod(i, columns)
        near = {
            ((r + dr) % rows, (c + dc) % columns) for dr, dc in [(0, 1), (0, -1), (1, 0), (-1, 0)]
        }
        assert set(made.graph[i]) == {r * columns + c for r, c in near}


def test_torus_is_most_square():
    assert one("torus", 12).name == "torus(rows=3)"
    assert one("torus", 7).name == "torus(rows=1)"


def test_exponential_receives_from_powers_of_two():
    assert one("exponential", 6).rounds[2].tolist() == [2, 3, 4, 5, 0, 1]  # i - 4
    weights = one("exponential", 8).matrix
    np.testing.assert_allclose(weights[0, [0, 7, 6, 4]], 0.25)
    shifts = [made.rounds[0].tolist() for made in make("one_peer_exponential", 6)]
    assert shifts == [[(i - shift) % 6 for i in range(6)] for shift in (1, 2, 4)]


@pytest.mark.parametrize("num", [2, 4, 8, 16])
def test_one_peer_exponential_gives_the_exact_mean(num):
    sequence = make("one_peer_exponential", num)
    assert 2 ** len(sequence) == num
    for start in range(len(sequence)):
        product = np.eye(num)
        for step in range(len(sequence)):
            product = sequence[(start + step) % len(sequence)].matrix @ product
        np.testing.assert_array_equal(product, np.full((num, num), 1 / num))


@pytest.mark.parametrize("num", [2, 5, 8])
def test_random_pairs_are_a_one_factorisation(num):
    sequence = make("random_pairs(seed=1)", num)
    assert len(sequence) == num - (num % 2 == 0)
    met = [edge for made in sequence for edge in made.graph.edges]
    assert sorted(met) == list(itertools.combinations(range(num), 2))
    for made in sequence:
        assert (made.degrees == 0).sum() == num % 2
        assert set(made.matrix.ravel().tolist()) <= {0.0, 0.5, 1.0}
        assert all(made.matrix[i, i] == 1 - made.degrees[i] / 2 for i in range(num))


def test_random_graphs_depend_on_the_seed_alone():
    for name in ("erdos_renyi", "random_regular", "small_world", "random_pairs"):
        first, again, other = (
            [list(made.graph.edges) for made in make(f"{name}(seed={seed})", 12)]
            for seed in (1, 1, 2)
        )
        assert first == again
        assert first != other


def test_random_graphs_are_drawn_until_connected():
    assert not nx.is_connected(nx.gnp_random_graph(10, 0.2, seed=0))
    assert nx.is_connected(one("erdos_renyi(p=0.2)", 10).graph)
    with pytest.raises(ValueError, match=r"erdos_renyi\(p=0.01, seed=0\) gave no connected graph"):
        make("erdos_renyi(p=0.01)", 16)


# The graphs of AL-DSGD


@pytest.mark.parametrize("graph", [1, 2, 3])
def test_al_dsgd_graphs(graph):
    made = one(f"al_dsgd(graph={graph})", 8)
    assert made.degrees.tolist() == DEGREES[graph]
    assert len(made.rounds) == 5
    values = eigenvalues(made)
    assert values[1] == pytest.approx(0.670, abs=5e-4)
    assert values[-1] == pytest.approx(6.330, abs=5e-4)
    assert -made.matrix[made.matrix != 0].min() == pytest.approx(0.43, abs=5e-3)  # 1 - 5 a
    assert np.unique(made.round_weights[made.round_weights > 0]) == pytest.approx(
        [0.2857], abs=5e-5
    )
    assert made.contraction == pytest.approx(0.8086, abs=5e-5)
    assert made.symmetric
    assert made.doubly_stochastic


@pytest.mark.parametrize(("density", "graph"), list(itertools.product(EDGES, DEGREES)))
def test_sparse_al_dsgd_graphs(density, graph):
    made = one(f"al_dsgd(graph={graph}, density={density})", 8)
    full = one(f"al_dsgd(graph={graph})", 8)
    assert made.graph.number_of_edges() == EDGES[density]
    assert set(made.graph.edges) <= set(full.graph.edges)
    components = nx.number_connected_components(made.graph)
    assert components == {38.5: 3}.get(density, 1)


def test_alternating_al_dsgd_graphs_mix_faster():
    assert topology.contraction(make("al_dsgd, al_dsgd", 8)) == pytest.approx(0.654, abs=5e-4)
    alternating = make("al_dsgd(graph=2), al_dsgd(graph=1)", 8)
    assert topology.contraction(alternating) == pytest.approx(0.572, abs=5e-4)


def test_only_the_union_is_connected(caplog):
    sparse = "al_dsgd(graph=2, density=38.5), al_dsgd(graph=1, density=38.5)"
    sequence = make(sparse, 8)
    with caplog.at_level(logging.WARNING):
        topology.check_connected(make("ring, al_dsgd(density=38.5)", 8))
        assert not caplog.records
        topology.check_connected(sequence)
    assert "only their union" in caplog.text
    assert topology.contraction(sequence) < 1
    with pytest.raises(
        ValueError, match=r"not connected: .*; its components are \[\[0, 1, 2, 3, 5, 6\], \[4\]"
    ):
        topology.check_connected(sequence[1:])


def test_directed_connection_must_be_strong():
    line = Topology.from_graph(nx.DiGraph([(0, 1), (1, 2)]), name="line")
    with pytest.raises(ValueError, match="'line' is not connected"):
        topology.check_connected([line])
    back = Topology.from_graph(nx.DiGraph([(2, 0), (0, 1)]))
    topology.check_connected([line, back])


# Mixing matrices


@settings(max_examples=50, deadline=None)
@given(connected, st.sampled_from(["metropolis", "best_constant", "uniform"]))
def test_weights_of_connected_graphs(graph, weights):
    made = Topology.from_graph(graph, weights=weights)
    np.testing.assert_allclose(made.matrix.sum(1), 1)
    assert ((made.matrix != 0) <= (nx.to_numpy_array(graph) + np.eye(len(graph)) != 0)).all()
    np.testing.assert_array_equal(from_rounds(made), made.matrix)
    degrees = made.degrees
    if weights == "uniform":
        assert made.symmetric == made.doubly_stochastic == (len(set(degrees.tolist())) == 1)
        np.testing.assert_allclose(made.matrix.diagonal(), 1 / (1 + degrees))
        return
    assert made.symmetric
    assert made.doubly_stochastic
    assert made.contraction < 1
    np.testing.assert_allclose(
        made.contraction, abs(np.linalg.eigvalsh(made.matrix - 1 / len(graph))).max(), atol=1e-12
    )
    if weights == "metropolis":
        for i, j in graph.edges:
            assert made.matrix[i, j] == pytest.approx(1 / (1 + max(degrees[i], degrees[j])))


@settings(max_examples=30, deadline=None)
@given(graphs)
def test_best_constant_is_the_best(graph):
    """Among all constants, on the vectors that the graph can contract at all."""
    found = WEIGHTS["best_constant"](graph)
    laplacian = nx.laplacian_matrix(graph).toarray()
    values = np.linalg.eigvalsh(laplacian.astype(float))[nx.number_connected_components(graph) :]
    if not len(values):
        np.testing.assert_array_equal(found, np.eye(len(graph)))
        return
    i, j = next(iter(graph.edges))
    tried = [abs(1 - a * values).max() for a in (found[i, j], *np.linspace(0, 2, 400))]
    assert tried[0] <= min(tried) + 1e-12


@settings(max_examples=30, deadline=None)
@given(digraphs)
def test_directed_graphs(graph):
    made = Topology.from_graph(graph)
    assert made.directed
    assert made.column_stochastic
    assert_rounds(made)
    np.testing.assert_array_equal(from_rounds(made), made.matrix)
    np.testing.assert_array_equal(made.degrees, [graph.in_degree(i) for i in range(len(graph))])
    for j in graph:
        np.testing.assert_allclose(made.matrix[j, j], 1 / (1 + graph.out_degree(j)))
    largest = max(max(d for _, d in graph.in_degree), max(d for _, d in graph.out_degree))
    assert len(made.rounds) == largest


def test_own_matrix():
    matrix = [[1.5, -0.5], [-0.5, 1.5]]
    assert Topology.from_graph(nx.path_graph(2), weights=matrix).contraction == pytest.approx(2)
    rows = Topology.from_graph(nx.DiGraph([(0, 1)]), weights=[[1, 0], [0.5, 0.5]])
    assert not rows.column_stochastic
    assert not rows.doubly_stochastic


def test_a_topology_does_not_change():
    graph = nx.path_graph(3)
    made = Topology.from_graph(graph)
    graph.add_edge(0, 2)
    assert made.graph.number_of_edges() == 2
    with pytest.raises(nx.NetworkXError):
        made.graph.add_edge(0, 2)
    with pytest.raises(ValueError, match="read-only"):
        made.matrix[0, 0] = 0
    with pytest.raises(ValueError, match="read-only"):
        made.rounds[0][0] = 0
    assert len({made, Topology.from_graph(graph)}) == 2


# Edge colouring


@settings(max_examples=100, deadline=None)
@given(graphs)
def test_matchings(graph):
    rounds = topology.matchings(graph)
    for pairs in rounds:
        met = [node for pair in pairs for node in pair]
        assert len(set(met)) == len(met) > 0
    edges = [pair for pairs in rounds for pair in pairs]
    assert sorted(edges) == sorted(graph.edges)
    largest = max(degree for _, degree in graph.degree)
    assert largest <= len(rounds) <= largest + 1 or not edges
    if nx.is_bipartite(graph):
        assert len(rounds) == largest


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 2**31))
def test_matchings_one_above_the_degree(half, quarter, seed):
    """Regular graphs of an odd number of nodes: every matching leaves out a node."""
    num, degree = 2 * half + 1, 2 * min(quarter, half)
    made = Topology.from_graph(nx.random_regular_graph(degree, num, seed=seed))
    assert_rounds(made)
    assert len(made.rounds) == degree + 1


def test_matchings_of_the_petersen_graph():
    assert_rounds(made := Topology.from_graph(nx.petersen_graph()))
    assert len(made.rounds) == 4


def test_matchings_of_unordered_nodes():
    graph = nx.Graph([(7, 3), (3, 5), (5, 7), (7, 1)])
    rounds = topology.matchings(graph)
    assert sorted(sum(rounds, [])) == [(1, 7), (3, 5), (3, 7), (5, 7)]  # noqa: RUF017
    assert len(rounds) == 3


def test_given_matchings_are_kept():
    rounds = [[(0, 1)], [(2, 1)], [(3, 2)]]
    made = Topology.from_graph(nx.path_graph(4), matchings=rounds)
    assert [r.tolist() for r in made.rounds] == [[1, 0, -1, -1], [-1, 2, 1, -1], [-1, -1, 3, 2]]


# Specifications


def test_specifications():
    ring, graph = one("ring", 4), nx.star_graph(3)
    found = make(["torus(rows=2), star", ring, (graph, "complete")], 4)
    names = [made.name for made in found]
    assert names == ["torus(rows=2)", "star", "ring", "graph", "complete"]
    assert found[2] is ring
    assert make(ring, np.int64(4)) == (ring,)
    assert one("star(weights='best_constant')", 5).contraction < one("star", 5).contraction
    assert repr(one("exponential", 8)).startswith("Topology('exponential', directed, 8 workers, 24")


PATH = nx.path_graph(3)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: make("rnig", 4), "unknown topology 'rnig'; did you mean 'ring'"),
        (lambda: make("torus(row=2)", 4), "unknown option .*'row'; did you mean 'rows'"),
        (lambda: make("ring(weights='metro')", 4), "unknown weights 'metro'"),
        (lambda: make("ring(", 4), "cannot be read"),
        (lambda: make([], 4), r"topology=\[\]"),
        (lambda: make(3, 4), "topology=3"),
        (lambda: make("ring", 0), "num=0"),
        (lambda: make("ring", True), "num=True"),
        (lambda: make(PATH, 4), "'graph' of 3 nodes: .* each of the 4 workers"),
        (lambda: topology.check_spec("ring, rnig"), "unknown topology 'rnig'"),
        (lambda: topology.check_spec([PATH, None]), "topology=None"),
        (lambda: topology.check_spec("torus(row=2)"), "unknown option"),
        (lambda: make("torus(rows=3)", 8), "rows=3: .* divisors of the number of workers, 8"),
        (lambda: make("hypercube", 6), "num=6: allowed for hypercube are powers of two"),
        (lambda: make("al_dsgd", 4), "num=4: allowed for al_dsgd is 8"),
        (lambda: make("al_dsgd(graph=4)", 8), "graph=4: allowed are 1, 2 or 3"),
        (lambda: make("al_dsgd(density=50)", 8), "density=50: allowed are 100, 84.6"),
        (lambda: make("erdos_renyi(p=0)", 4), r"p=0: allowed are numbers in \(0, 1\]"),
        (lambda: make("erdos_renyi(seed=-1)", 4), "seed=-1"),
        (lambda: make("random_pairs(seed=0.5)", 4), "seed=0.5"),
        (lambda: make("random_regular(degree=3)", 5), "degree=3: allowed with 5 workers"),
        (lambda: make("random_regular(degree=8)", 8), "degree=8: allowed with 8 workers"),
        (lambda: make("random_regular(degree=1)", 8), "gave no connected graph"),
        (lambda: make("small_world(k=3)", 8), "k=3: allowed with 8 workers are even"),
        (lambda: make("small_world(k=4)", 3), "k=4: allowed with 3 workers"),
        (lambda: make("small_world(p=1.5)", 8), "p=1.5"),
        (lambda: make("exponential(weights='metropolis')", 8), "weights='metropolis': allowed"),
        (lambda: make("exponential(weights='best_constant')", 8), "weights='best_constant'"),
        (lambda: Topology.from_graph(nx.Graph([(1, 2)])), "nodes .*1, 2.*: allowed are 0.*conv"),
        (lambda: Topology.from_graph(nx.Graph([("a", "b")])), "allowed are 0..W-1"),
        (lambda: Topology.from_graph(nx.Graph()), "at least one"),
        (lambda: Topology.from_graph(nx.Graph([(0, 0), (0, 1)])), "self loops"),
        (lambda: Topology.from_graph(nx.MultiGraph([(0, 1)])), "Graph or DiGraph"),
        (lambda: Topology.from_graph([[0, 1], [1, 0]]), "Graph or DiGraph"),
        (lambda: Topology.from_graph(PATH, weights=np.eye(2)), r"shape \[2, 2\]: .*\[3, 3\]"),
        (lambda: Topology.from_graph(PATH, weights=np.full((3, 3), 1 / 3)), r"matrix\[0, 2\]="),
        (lambda: Topology.from_graph(PATH, weights=0.9 * np.eye(3)), "rows whose sums are off"),
        (lambda: Topology.from_graph(PATH, weights=np.diag([1, 1, np.nan])), "allowed are finite"),
        (
            lambda: Topology.from_graph(nx.DiGraph([(0, 1)]), weights=[[1, 0], [1, 1]]),
            "rows or columns",
        ),
        (
            lambda: Topology.from_graph(nx.DiGraph([(0, 1)]), weights=[[0.5, 0.5], [0, 1]]),
            r"matrix\[0, 1\]=0.5: .*; 0 receives nothing from 1",
        ),
        (lambda: Topology.from_graph(PATH, matchings=[[(0, 1), (1, 2)]]), "1 receives already"),
        (lambda: Topology.from_graph(PATH, matchings=[[(0, 1)]]), "receive from 2 0 times"),
        (lambda: Topology.from_graph(PATH, matchings=[[(0, 2)]]), r"\(0, 2\): allowed are edges"),
        (
            lambda: Topology.from_graph(PATH, matchings=[[(0, 1)], [(1, 2)], [(0, 1)]]),
            "receive from 1 2 times",
        ),
        (
            lambda: Topology.from_graph(nx.DiGraph([(0, 1), (0, 2)]), matchings=[[(0, 1), (0, 2)]]),
            "send to one other at most",
        ),
        (lambda: Topology("x", PATH, np.eye(3), ([1, 2, -1],)), "undirected graph are matchings"),
        (lambda: Topology("x", PATH, np.eye(3), ([1, 0],)), "3 workers or -1"),
        (lambda: Topology("x", PATH, np.eye(3), ([3, 0, 1],)), "3 workers or -1"),
        (lambda: topology.matcha.activation(one("ring", 4), 0), r"budget=0"),
        (lambda: topology.matcha.activation(one("ring", 4), 1.1), "budget=1.1"),
        (lambda: topology.matcha.activation(one("ring", 4), "half"), "budget='half'"),
        (lambda: topology.matcha.activation(one("exponential", 4), 0.5), "is directed"),
        (lambda: topology.plot([]), r"topologies=\[\]"),
        (lambda: topology.plot([one("ring", 4), one("ring", 3)]), "topologies="),
    ],
)
def test_errors(build, match):
    with pytest.raises(ValueError, match=match):
        build()


# MATCHA


def laplacians(made):
    adjacent = [np.eye(made.num_workers)[r] * (r >= 0)[:, None] for r in made.rounds]
    return np.array([np.diag(a.sum(1)) - a for a in adjacent])


def expected_norm(made, p, a):
    """||E[W^T W] - J||, over all sets of active matchings."""
    num, total = made.num_workers, 0
    for active in itertools.product([0, 1], repeat=len(p)):
        chance = np.prod([q if on else 1 - q for q, on in zip(p, active, strict=True)])
        mixing = np.eye(num) - a * np.tensordot(active, laplacians(made), 1)
        total = total + chance * mixing.T @ mixing
    return np.linalg.norm(total - 1 / num, 2)


@pytest.mark.parametrize(
    ("spec", "num", "budget"),
    [
        ("star", 3, 0.5),
        ("ring", 5, 0.4),
        (nx.lollipop_graph(3, 2), 5, 0.5),
        (nx.Graph([(0, 1), (1, 2), (2, 3), (3, 4), (1, 3), (4, 5)]), 6, 0.7),
    ],
)
def test_activation_is_the_best(spec, num, budget):
    made = one(spec, num)
    p, a, factor = topology.matcha.activation(made, budget)
    parts = laplacians(made)
    slowest = lambda p: np.linalg.eigvalsh(np.tensordot(p, parts, 1))[1]
    grid = np.linspace(0, 1, 51)
    tried = [
        slowest(q)
        for q in itertools.product(grid, repeat=len(p))
        if budget * len(p) - 0.03 <= sum(q) <= budget * len(p) + 1e-9
    ]
    assert min(p) >= 0
    assert max(p) <= 1
    assert sum(p) <= budget * len(p) + 1e-9
    assert max(tried) - 1e-6 <= slowest(p) <= max(tried) + 0.05
    assert factor**2 == pytest.approx(expected_norm(made, p, a), abs=1e-9)
    assert factor**2 <= min(expected_norm(made, p, b) for b in a * np.linspace(0.5, 1.5, 41)) + 1e-9
    again = topology.matcha.activation(made, budget)
    np.testing.assert_array_equal(p, again[0])
    assert (a, factor) == again[1:]


def test_full_activation_is_best_constant():
    made = one("al_dsgd", 8)
    p, a, factor = topology.matcha.activation(made, 1.0)
    assert p.tolist() == [1.0] * 5
    assert a == pytest.approx(0.2857, abs=5e-5)
    assert factor == pytest.approx(made.contraction)


def test_activation_of_al_dsgd_beats_equal_probabilities():
    made = one("al_dsgd", 8)
    p, a, factor = topology.matcha.activation(made, 0.5)
    slowest = lambda p: np.linalg.eigvalsh(np.tensordot(p, laplacians(made), 1))[1]
    draws = np.random.default_rng(0).dirichlet(np.ones(5), size=2000) * 2.5
    assert slowest(p) > max(slowest(q) for q in [np.full(5, 0.5), *draws[draws.max(1) <= 1]])
    assert factor**2 == pytest.approx(expected_norm(made, p, a), abs=1e-9)


def test_activation_of_a_graph_that_is_not_connected():
    made = one("al_dsgd(density=38.5)", 8)
    p, a, factor = topology.matcha.activation(made, 0.5)
    within = lambda p: np.linalg.eigvalsh(np.tensordot(p, laplacians(made), 1))[3]
    draws = np.random.default_rng(0).dirichlet(np.ones(4), size=2000) * 2
    assert sum(p) <= 2 + 1e-9
    assert within(p) > max(within(q) for q in [np.full(4, 0.5), *draws[draws.max(1) <= 1]])
    assert a > 0
    assert factor == 1.0
    assert topology.matcha.activation(made, 1)[1] == pytest.approx(0.5)


def test_activation_without_edges():
    p, a, factor = topology.matcha.activation(one("ring", 1), 0.5)
    assert (p.shape, a, factor) == ((0,), 0.0, 0.0)


# Pictures


def test_plot(tmp_path):
    file = tmp_path / "mixing.png"
    sequence = make("one_peer_exponential, ring", 4)
    figure = topology.plot(sequence, file)
    assert file.stat().st_size > 10_000
    titles = [axes.get_title() for axes in figure.axes]
    assert titles.count("ring: 2 rounds") == 1
    assert titles.count("contraction 0.333") == 1
    (curve,) = figure.axes[-1].lines
    assert curve.get_ydata()[:2].tolist() == [1, pytest.approx(sequence[0].contraction)]
    assert curve.get_ydata()[2] < 1e-15  # two mixings of four workers: the mean


def test_plot_of_one_worker():
    assert len(topology.plot(one("ring", 1)).axes) == 4
