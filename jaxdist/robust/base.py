"""How an aggregate of the workers' trees is computed: each worker combines a part of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist import collectives
from jaxdist.checks import check_scalar
from jaxdist.collectives import Axis
from jaxdist.trees import on_flat

Tree = Any
Total = Callable[[jax.Array], jax.Array]
Combine = Callable[[jax.Array, jax.Array, Total], jax.Array]


@dataclasses.dataclass(frozen=True)
class Aggregate:
    """What stands for the mean of the workers.

    Attributes:
        name: its name in `AGGREGATES`.
        combine: `combine(rows [W, n], good [W], total) -> [n]`. The rows are the same n coordinates
            of all workers; `total(a)` is the sum of `a` over all such parts, for norms. A row that
            is not good is to be left out, and is zeros. Where none is good what comes out does not
            matter.
        bad: how many bad workers it is made for, on which the number of workers it needs depends.
        by_coordinate: whether it does the same for each coordinate and looks at no other.
    """

    name: str
    combine: Combine
    bad: int = 0
    by_coordinate: bool = False

    def check(self, num: int) -> None:
        """Raises a ValueError if `num` workers are too few."""
        least = 2 * self.bad + (3 if "krum" in self.name else 1)
        if num < least:
            raise ValueError(
                f"aggregate={self.name!r} for {num} workers: allowed are at least {least}, as it "
                f"is made for {self.bad} bad ones"
            )


def aggregate(
    chosen: Aggregate, tree: Tree, axis: Axis, good: jax.Array | bool = True
) -> tuple[Tree, jax.Array]:
    """The aggregate of all workers' trees, in the place of `collectives.mean`.

    Sends an all-to-all and an all-gather of d numbers, the bytes of an all-reduce, and besides W
    numbers for who is good and what the aggregate needs for norms, W numbers or W^2 each time.

    Args:
        chosen: the aggregate.
        tree: this worker's.
        axis: the workers' axis.
        good: whether this worker counts; one that does not may hold anything, NaN too.

    Returns:
        The aggregate, in the leaves' types, NaN if no worker is good; and how many are.

    Raises:
        ValueError: if there are too few workers, or more than 2^31 - 1 numbers for an aggregate
            that does not work by coordinate, or `good` is no scalar.

    Example:
        >>> import jaxdist.robust
        >>> f = lambda x: aggregate(jaxdist.robust.median(), x, "w")[0]
        >>> jax.vmap(f, axis_name="w")(jnp.array([1.0, 2.0, 99.0])).tolist()
        [2.0, 2.0, 2.0]
    """
    num = collectives.size(axis)
    chosen.check(num)
    check_scalar("good", good)
    everyone = collectives.gather_scalars(jnp.asarray(good, jnp.float32), axis)
    types = {jnp.promote_types(x.dtype, jnp.float32) for x in jax.tree.leaves(tree)}
    widest = jnp.result_type(*types)
    total = lambda a: collectives.sum(a, axis)

    def on_parts(flat, everyone):
        parts = jnp.pad(flat, (0, -flat.size % num)).reshape(num, -1)
        rows = collectives.all_to_all(parts, axis)
        rows = jnp.where(everyone[:, None] > 0, rows, 0)
        result = chosen.combine(rows, everyone > 0, total)
        result = jnp.where(everyone.sum() > 0, result, jnp.nan)
        return lax.slice_in_dim(collectives.all_gather(result, axis).reshape(-1), 0, flat.size)

    widened = jax.tree.map(lambda x: x.astype(widest), tree)
    result = on_flat(on_parts, widened, everyone, at_once=not chosen.by_coordinate)
    return jax.tree.map(lambda f, x: f.astype(x.dtype), result, tree), everyone.sum()
