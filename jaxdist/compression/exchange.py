"""How what a rule exchanges travels: as it is, or compressed.

`Wire` is for what neighbours send each other, `Means` for what all workers add up, `Leader` for
what one of them sends to all. Each takes a rule's argument `compress`; with None they are the plain
collectives, and remember nothing.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxdist import collectives
from jaxdist.collectives import Axis
from jaxdist.compression import Compressor, make

Tree = Any


class Memory(NamedTuple):
    """What a rule remembers of a compressed exchange.

    Attributes:
        reference: the last result, which is the same on all workers, () if it is not needed.
        left: what this worker has not got across yet, or (levels) what it has; () without feedback.
        total: the mean of what all workers have got across (levels with feedback), else ().
        state: the compressor's own.
    """

    reference: Tree
    left: Tree
    total: Tree
    state: Tree


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

    Compressed, a worker sends C(p_i), and of p_i what C left out comes later. Two kinds of things
    are averaged:

    increments, which are added up by the receivers:
        p_i = z_i + e_i;  e_i <- p_i - C(p_i);  result = mean_i C(p_i)
    levels, of which a part that was left out is there again the next time:
        p_i = z_i - h_i;  h_i <- h_i + C(p_i);  result <- result + mean_i C(p_i)

    e and h are kept only for compressors that need feedback; without, e = h = 0. With a reference
    r, the last mean of x, z_i = w_i / mean(w) (x_i - r) and the mean is r + result. All workers
    must start from the same parameters, which are the first reference.

    Args:
        axis: the workers' axis.
        compress: a compressor, its name with options, or None.
        kind: "increments" or "levels".
        reference: whether differences from the last mean are sent.
    """

    def __init__(
        self,
        axis: Axis,
        compress: str | Compressor | None,
        kind: Literal["increments", "levels"] = "increments",
        *,
        reference: bool = True,
    ):
        self._axis, self._compressor = axis, make(compress)
        self._levels, self._reference = kind == "levels", reference

    def init(self, params: Tree) -> Memory | tuple[()]:
        """The memory at the start."""
        if self._compressor is None:
            return ()
        feedback = self._compressor.feedback
        zeros = jax.tree.map(jnp.zeros_like, wide(params))
        return Memory(
            wide(params) if self._reference else (),
            zeros if feedback else (),
            zeros if feedback and self._levels else (),
            self._compressor.init(wide(params)),
        )

    def mean(
        self, tree: Tree, memory: Memory | tuple[()], step: jax.Array, weight: Tree = 1.0
    ) -> tuple[Tree, Tree, Memory | tuple[()]]:
        """The weighted mean, the sum of the weights, and the new memory; see `collectives.mean`."""
        if self._compressor is None:
            return *collectives.mean(tree, self._axis, weight), memory
        one_for_all = jax.tree.structure(weight) != jax.tree.structure(tree)
        each_leaf = lambda w: jax.tree.map(lambda _: w, tree) if one_for_all else w
        weight = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), weight)
        total = collectives.sum(weight, self._axis)
        num = collectives.size(self._axis)
        share = lambda x, w, t: jnp.where(w == 0, 0, num * w / t * x)
        apart = wide(tree)
        if self._reference:
            apart = jax.tree.map(jnp.subtract, apart, memory.reference)
        apart = jax.tree.map(share, apart, each_leaf(weight), each_leaf(total))
        result, memory = self._get_across(apart, memory, step)
        if self._reference:
            result = jax.tree.map(jnp.add, memory.reference, result)
            memory = memory._replace(reference=result)
        return jax.tree.map(lambda m, x: m.astype(x.dtype), result, tree), total, memory

    def sum(
        self, tree: Tree, memory: Memory | tuple[()], step: jax.Array
    ) -> tuple[Tree, Memory | tuple[()]]:
        """The sum over all workers, and the new memory; for increments without reference."""
        if self._compressor is None:
            return collectives.sum(tree, self._axis), memory
        mean, memory = self._get_across(tree, memory, step)
        num = collectives.size(self._axis)
        return jax.tree.map(lambda m: num * m, mean), memory

    def _get_across(self, wanted: Tree, memory: Memory, step: jax.Array) -> tuple[Tree, Memory]:
        """The mean of what arrives when each worker wants to send `wanted`."""
        feedback = self._compressor.feedback
        sent = wanted
        if feedback:
            op = jnp.subtract if self._levels else jnp.add
            sent = jax.tree.map(op, wanted, memory.left)
        mean, own, state = self._compressor.mean(sent, memory.state, self._axis, step)
        memory = memory._replace(state=state)
        if feedback and self._levels:
            mean = jax.tree.map(jnp.add, memory.total, mean)
            left = jax.tree.map(jnp.add, memory.left, own)
            memory = memory._replace(left=left, total=mean)
        elif feedback:
            memory = memory._replace(left=jax.tree.map(jnp.subtract, sent, own))
        return mean, memory


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

    def init(self, params: Tree) -> Memory | tuple[()]:
        """The memory at the start."""
        if self._compressor is None:
            return ()
        return Memory(wide(params), (), (), self._compressor.init(wide(params)))

    def elect(
        self,
        tree: Tree,
        score: jax.Array,
        memory: Memory | tuple[()],
        step: jax.Array,
        groups: collectives.Groups | None = None,
    ) -> tuple[Tree, jax.Array, Memory | tuple[()]]:
        """The leader's tree, its index and the new memory; see `collectives.from_argmin`."""
        if self._compressor is None:
            return *collectives.from_argmin(tree, score, self._axis, groups), memory
        apart = jax.tree.map(jnp.subtract, wide(tree), memory.reference)
        message, state = self._compressor.encode(apart, memory.state, step)
        message, leader = collectives.from_argmin(message, score, self._axis, groups)
        change = self._compressor.decode(message, apart, step)
        known = jax.tree.map(jnp.add, memory.reference, change)
        found = jax.tree.map(lambda k, x: k.astype(x.dtype), known, tree)
        return found, leader, memory._replace(reference=known, state=state)


def wide(tree: Tree) -> Tree:
    """The tree in float32 or wider."""
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)
