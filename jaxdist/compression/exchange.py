"""How what a rule exchanges travels, as it is or compressed, and how it is put together.

`Wire` is for what neighbours send each other, `Means` for what all workers add up, `Leader` for
what one of them sends to all. Each takes a rule's argument `compress`; with None they are the plain
collectives, and remember nothing.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxdist import collectives, robust
from jaxdist.collectives import Axis
from jaxdist.compression import Compressor, make
from jaxdist.trees import wide

Tree = Any


class Memory(NamedTuple):
    """What a rule remembers of a compressed exchange.

    Attributes:
        reference: the last result, which is the same on all workers, () if it is not needed.
        left: e or h of `Means`, () without feedback.
        state: the compressor's own.
    """

    reference: Tree
    left: Tree
    state: Tree


Kept = Any
"""A `Memory`, () without compression."""


class Wire:
    """Messages between neighbours.

    Args:
        compress: a compressor without memory, by name or itself; None for none.
        rule: who asks, for the error.

    Raises:
        ValueError: for a compressor whose receivers need a memory.
    """

    def __init__(self, compress: str | Compressor | None, rule: str):
        self._compressor = make(compress)
        if self._compressor is not None and self._compressor.feedback:
            raise ValueError(
                f"compress is {compress!r}, whose receivers must remember what came before; {rule} "
                f"takes 'int8', 'bf16' or None: for other compressors use choco"
            )

    def send(self, x: Tree, step: jax.Array) -> tuple[Tree, Tree]:
        """Returns the message, and x in float32 or wider as the neighbours will read it."""
        if self._compressor is None:
            return x, wide(x)
        message, _ = self._compressor.encode(wide(x), (), step)
        return message, self.read(message, x, step)

    def read(self, message: Tree, like: Tree, step: jax.Array) -> Tree:
        """The tree that a message stands for, in float32 or wider."""
        if self._compressor is None:
            return wide(message)
        return self._compressor.decode(message, wide(like), step)


class Means:
    """Means and sums over all workers.

    Compressed, worker i with weight s_i = w_i / mean(w) sends C(p_i) of what it has to say since
    the last mean r, which all of them know: r <- r + m, m = mean_i C(p_i). What C leaves out comes
    later. Of two kinds:

    increments, after which x_i is the mean, or which the receivers add up (then r = 0):
        p_i = s_i (x_i - r) + e_i;  e_i <- p_i - C(p_i)
    levels, where x_i stays away from the mean and would say so again each time:
        p_i = s_i (x_i - r) - h_i;  h_i <- h_i + C(p_i) - s_i m

    so h_i is what the others know of s_i (x_i - r) under the new r. Compressors that need no
    feedback have e = h = 0. All workers must start from the same parameters, the first r.

    Args:
        axis: the workers' axis.
        compress: a compressor, its name with options, or None.
        kind: "increments" or "levels".
        reference: whether differences from r are sent; only increments may do without.
        aggregate: what stands for the mean, see `jaxdist.robust`; None for the mean itself. Of the
            weights it only sees which are 0.

    Raises:
        ValueError: if both a compressor and an aggregate are given, or one cannot be read.

    Reference:
        Error feedback from memory, the form for levels is this library's; with uniform weights it
        is CHOCO-SGD on the complete graph.
    """

    def __init__(
        self,
        axis: Axis,
        compress: str | Compressor | None,
        kind: Literal["increments", "levels"] = "increments",
        *,
        reference: bool = True,
        aggregate: str | robust.Aggregate | None = None,
    ):
        self._axis, self._compressor = axis, make(compress)
        self._aggregate = robust.make(aggregate)
        if self._compressor is not None and self._aggregate is not None:
            raise ValueError(
                f"compress is {compress!r} and aggregate is {aggregate!r}; one of them must be "
                f"None, since what is compressed is only added up"
            )
        self._levels, self._reference = kind == "levels", reference

    def init(self, params: Tree) -> Kept:
        """The memory at the start."""
        if self._compressor is None:
            return ()
        zeros = jax.tree.map(jnp.zeros_like, wide(params))
        return Memory(
            wide(params) if self._reference else (),
            zeros if self._compressor.feedback else (),
            self._compressor.init(wide(params)),
        )

    def mean(
        self,
        tree: Tree,
        memory: Kept,
        step: jax.Array,
        weight: Tree = 1.0,
        otherwise: Tree | None = None,
    ) -> tuple[Tree, Tree, Kept]:
        """The weighted mean, the sum of the weights, and the new memory; see `collectives.mean`.

        Where all weights are 0 nothing is added to what all know, and nothing is remembered.
        """
        otherwise = tree if otherwise is None else otherwise
        if self._aggregate is not None:
            good = jnp.asarray(weight) > 0
            mean, number = robust.aggregate(self._aggregate, tree, self._axis, good)
            choose = lambda m, other: jnp.where(number > 0, m, other.astype(m.dtype))
            return jax.tree.map(choose, mean, otherwise), number, memory
        if self._compressor is None:
            return *collectives.mean(tree, self._axis, weight, otherwise=otherwise), memory
        weight = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), weight)
        total = collectives.sum(weight, self._axis)
        num = collectives.size(self._axis)
        by = jax.tree.map(lambda t: jnp.where(t > 0, t, 1), total)
        share = jax.tree.map(lambda w, t: num * w / t, weight, by)
        some = jax.tree.map(lambda t: t > 0, total)
        if jax.tree.structure(share) != jax.tree.structure(tree):
            share, some = (jax.tree.map(lambda _, s=s: s, tree) for s in (share, some))
        apart = wide(tree)
        if self._reference:
            apart = jax.tree.map(jnp.subtract, apart, memory.reference)
        apart = jax.tree.map(lambda s, x: jnp.where(s == 0, 0, s * x), share, apart)
        change, sent = self._send(apart, share, memory, step)
        if self._reference:
            change = jax.tree.map(jnp.add, memory.reference, change)
            sent = sent._replace(reference=change)
        choose = lambda some, m, x: jnp.where(some, m.astype(x.dtype), x)
        found = jax.tree.map(choose, some, change, otherwise)
        anybody = jnp.stack([s.any() for s in jax.tree.leaves(some)]).any()
        keep = lambda new, old: jnp.where(anybody, new, old)
        return found, total, jax.tree.map(keep, sent, memory)

    def sum(self, tree: Tree, memory: Kept, step: jax.Array) -> tuple[Tree, Kept]:
        """The sum over all workers, and the new memory; for increments without reference.

        Of an aggregate it is W times that.
        """
        if self._aggregate is not None:
            mean, _ = robust.aggregate(self._aggregate, tree, self._axis)
            return jax.tree.map(lambda m: collectives.size(self._axis) * m, mean), memory
        if self._compressor is None:
            return collectives.sum(tree, self._axis), memory
        mean, memory = self._send(tree, None, memory, step)
        num = collectives.size(self._axis)
        return jax.tree.map(lambda m: num * m, mean), memory

    def _send(self, wanted: Tree, share: Tree, memory: Memory, step: jax.Array):
        """The mean of what arrives when each worker wants to send `wanted`, and the memory."""
        assert self._compressor is not None
        feedback, left = self._compressor.feedback, memory.left
        if feedback:
            wanted = jax.tree.map(jnp.subtract if self._levels else jnp.add, wanted, left)
        mean, own, state = self._compressor.mean(wanted, memory.state, self._axis, step)
        if feedback and self._levels:
            left = jax.tree.map(lambda h, q, s, m: h + q - s * m, left, own, share, mean)
        elif feedback:
            left = jax.tree.map(jnp.subtract, wanted, own)
        return mean, memory._replace(left=left, state=state)


class Leader:
    """What the worker of least score sends to all, or to its group.

    Compressed, the difference from the last leader as all know it: l <- l + C(x_leader - l). Before
    the first one that is the initial parameters, which must be the same on all workers.

    Args:
        axis: the workers' axis.
        compress: a compressor, its name with options, or None.
    """

    def __init__(self, axis: Axis, compress: str | Compressor | None):
        self._axis, self._compressor = axis, make(compress)

    def init(self, params: Tree) -> Kept:
        """The memory at the start."""
        if self._compressor is None:
            return ()
        return Memory(wide(params), (), self._compressor.init(wide(params)))

    def elect(
        self,
        tree: Tree,
        score: jax.Array,
        memory: Kept,
        step: jax.Array,
        groups: collectives.Groups | None = None,
    ) -> tuple[Tree, jax.Array, Kept]:
        """The leader's tree, its index and the new memory; see `collectives.from_argmin`."""
        if self._compressor is None:
            return *collectives.from_argmin(tree, score, self._axis, groups), memory
        apart = jax.tree.map(jnp.subtract, wide(tree), memory.reference)
        message, state = self._compressor.encode(apart, memory.state, step)
        message, leader = collectives.from_argmin(message, score, self._axis, groups)
        change = self._compressor.decode(message, apart, step)
        choose = lambda new, old: jnp.where(leader >= 0, new.astype(old.dtype), old)
        known = jax.tree.map(jnp.add, memory.reference, change)
        found = jax.tree.map(choose, known, tree)
        known = jax.tree.map(choose, known, memory.reference)
        return found, leader, memory._replace(reference=known, state=state)
