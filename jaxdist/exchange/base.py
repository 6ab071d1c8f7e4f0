"""What exchanges have in common.

A rule keeps their memory in its state, () where nothing is remembered, and gives it back the next
time.
"""

from typing import Any, Literal, Protocol

import jax

from jaxdist import collectives

Tree = Any

Kind = Literal["increments", "changes", "levels"]
"""What is averaged, see `exchange.means`."""


class Means(Protocol):
    """Means and sums over all workers."""

    def init(self, params: Tree) -> Tree:
        """The memory at the start."""

    def mean(
        self,
        tree: Tree,
        memory: Tree,
        step: jax.Array,
        weight: Tree = 1.0,
        otherwise: Tree | None = None,
    ) -> tuple[Tree, Tree, Tree]:
        """The weighted mean, the sum of the weights, and the new memory; see `collectives.mean`.

        Where all weights are 0 the result is `otherwise`, None for the tree itself, and nothing is
        remembered.
        """

    def sum(self, tree: Tree, memory: Tree, step: jax.Array) -> tuple[Tree, Tree]:
        """The sum over all workers, and the new memory; only of changes."""


class Wire(Protocol):
    """Messages between neighbours."""

    def send(self, x: Tree, step: jax.Array) -> tuple[Tree, Tree]:
        """Returns the message, and x in float32 or wider as the neighbours will read it."""

    def read(self, message: Tree, like: Tree, step: jax.Array) -> Tree:
        """The tree that a message stands for, in float32 or wider."""


class Leader(Protocol):
    """What the worker of least score sends to all, or to its group."""

    def init(self, params: Tree) -> Tree:
        """The memory at the start."""

    def elect(
        self,
        tree: Tree,
        score: jax.Array,
        memory: Tree,
        step: jax.Array,
        groups: collectives.Groups | None = None,
    ) -> tuple[Tree, jax.Array, Tree]:
        """The leader's tree, its index and the new memory; see `collectives.from_argmin`."""
