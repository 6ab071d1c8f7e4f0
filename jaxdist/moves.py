"""How moves between devices that hold several workers are split into permutations."""

import collections

import numpy as np

Round = tuple[list[tuple[int, int]], np.ndarray, np.ndarray]


def rounds(source: np.ndarray) -> list[Round]:
    """Splits moves between n devices into rounds in which each sends and receives at most one row.

    `source[b, slot]` is the worker whose row moves to that slot of device b, -1 for none. The moves
    are the edges of a bipartite multigraph of sending and receiving devices; empty moves make it
    regular, of the largest degree, and then it is a union of as many perfect matchings (Koenig). A
    round is (device pairs, the slot that each device sends, the slot in which each receives or -1).
    """
    from scipy.sparse import csgraph, csr_array  # imported here: it takes long, and few need it

    num, k = source.shape
    moves = collections.defaultdict(list)
    counts = np.zeros((num, num), int)
    for b, slot in np.argwhere(source >= 0):
        a = source[b, slot] // k
        moves[a, b].append((source[b, slot] % k, slot))
        counts[a, b] += 1
    degree = np.append(counts.sum(0), counts.sum(1)).max()
    for a, b in np.ndindex(num, num):
        counts[a, b] += np.minimum(degree - counts[a].sum(), degree - counts[:, b].sum())
    result = []
    for _ in range(degree):
        target = csgraph.maximum_bipartite_matching(csr_array(counts), perm_type="column")
        pairs, send, receive = [], np.zeros(num, int), np.full(num, -1)
        for a, b in enumerate(target):
            counts[a, b] -= 1
            if moves[a, b]:
                send[a], receive[b] = moves[a, b].pop()
                pairs.append((a, int(b)))
        result.append((pairs, send, receive))
    return result
