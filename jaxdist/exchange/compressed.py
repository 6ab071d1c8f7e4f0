"""Compressed exchanges: messages, and a memory of what they left out.

A compressed mean: worker i with weight s_i = w_i / mean(w) sends C(p_i) of what it has to say since
the last mean r, which all of them know: r <- r + m, m = mean_i C(p_i). What C leaves out comes
later. Of three kinds:

increments, after which x_i is the mean:
    p_i = s_i (x_i - r) + e_i;  e_i <- p_i - C(p_i)
changes, which the receivers add up: the same with r = 0
levels, where x_i stays away from the mean and would say so again each time:
    p_i = s_i (x_i - r) - h_i;  h_i <- h_i + C(p_i) - s_i m

so h_i is what the others know of s_i (x_i - r) under the new r. Compressors that need no feedback
have e = h = 0. But for changes all workers must start from the same parameters, the first r.

A compressed leader: the difference from the last one as all know it, l <- l + C(x_leader - l).
Before the first one that is the initial parameters, which must be the same on all workers.

Error feedback from memory, the form for levels is this library's; with uniform weights it is
CHOCO-SGD on the complete graph.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdist import collectives
from jaxdist.collectives import Axis
from jaxdist.compression import Compressor
from jaxdist.exchange import base
from jaxdist.exchange.base import Kind
from jaxdist.trees import wide

Tree = Any


class Memory(NamedTuple):
    """What a rule remembers of a compressed exchange.

    Attributes:
        reference: the last result, which is the same on all workers, () if it is not needed.
        left: e or h of a mean, () without feedback.
        state: the compressor's own.
    """

    reference: Tree
    left: Tree
    state: Tree


@dataclasses.dataclass(frozen=True)
class Means(base.Means):
    """Means of what arrives; where nobody has a weight, nothing is added to what all know."""

    axis: Axis
    compressor: Compressor
    kind: Kind

    @property
    def _reference(self) -> bool:
        """Whether differences from r are sent."""
        return self.kind != "changes"

    def init(self, params):
        zeros = jax.tree.map(jnp.zeros_like, wide(params))
        return Memory(
            wide(params) if self._reference else (),
            zeros if self.compressor.feedback else (),
            self.compressor.init(wide(params)),
        )

    def mean(self, tree, memory, step, weight=1.0, otherwise=None):
        otherwise = tree if otherwise is None else otherwise
        weight = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), weight)
        total = collectives.sum(weight, self.axis)
        num = collectives.size(self.axis)
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
        result = jax.tree.map(choose, some, change, otherwise)
        anybody = jnp.stack([s.any() for s in jax.tree.leaves(some)]).any()
        keep = lambda new, old: jnp.where(anybody, new, old)
        return result, total, jax.tree.map(keep, sent, memory)

    def sum(self, tree, memory, step):
        mean, memory = self._send(tree, None, memory, step)
        num = collectives.size(self.axis)
        return jax.tree.map(lambda m: num * m, mean), memory

    def _send(self, wanted: Tree, share: Tree, memory: Memory, step: jax.Array):
        """The mean of what arrives when each worker wants to send `wanted`, and the memory."""
        feedback, left, levels = self.compressor.feedback, memory.left, self.kind == "levels"
        if feedback:
            wanted = jax.tree.map(jnp.subtract if levels else jnp.add, wanted, left)
        mean, own, state = self.compressor.mean(wanted, memory.state, self.axis, step)
        if feedback and levels:
            left = jax.tree.map(lambda h, q, s, m: h + q - s * m, left, own, share, mean)
        elif feedback:
            left = jax.tree.map(jnp.subtract, wanted, own)
        return mean, memory._replace(left=left, state=state)


@dataclasses.dataclass(frozen=True)
class Wire(base.Wire):
    """Messages that neighbours read without a memory."""

    compressor: Compressor

    def send(self, x, step):
        message, _ = self.compressor.encode(wide(x), (), step)
        return message, self.read(message, x, step)

    def read(self, message, like, step):
        return self.compressor.decode(message, wide(like), step)


@dataclasses.dataclass(frozen=True)
class Leader(base.Leader):
    """The difference between the leader's tree and the last one that all know."""

    axis: Axis
    compressor: Compressor

    def init(self, params):
        return Memory(wide(params), (), self.compressor.init(wide(params)))

    def elect(self, tree, score, memory, step, groups=None):
        apart = jax.tree.map(jnp.subtract, wide(tree), memory.reference)
        message, state = self.compressor.encode(apart, memory.state, step)
        message, leader = collectives.from_argmin(message, score, self.axis, groups)
        change = self.compressor.decode(message, apart, step)
        choose = lambda new, old: jnp.where(leader >= 0, new.astype(old.dtype), old)
        known = jax.tree.map(jnp.add, memory.reference, change)
        result = jax.tree.map(choose, known, tree)
        known = jax.tree.map(choose, known, memory.reference)
        return result, leader, memory._replace(reference=known, state=state)
