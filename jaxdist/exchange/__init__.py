"""How what a rule exchanges travels, and how it is put together.

`means` is for what all workers add up, `wire` for what neighbours send each other, `leader` for
what one worker sends to all. Each gives what a rule's arguments ask for:

| `compress` | `aggregate` | | |
|---|---|---|---|
| None | None | `exchange.plain` | collectives of the trees as they are |
| a compressor | None | `exchange.compressed` | messages, and a memory of what was left out |
| None | an aggregate | `exchange.aggregated` | what stands for the mean, of means only |

Both together are refused. What a wire's message is read by is in it: a wire takes no compressor
that needs a memory.
"""

from jaxdist import compression, robust
from jaxdist.collectives import Axis
from jaxdist.compression import Compressor
from jaxdist.exchange import aggregated, compressed, plain
from jaxdist.exchange.base import Kind, Leader, Means, Wire
from jaxdist.exchange.compressed import Memory
from jaxdist.robust import Aggregate

__all__ = ["Leader", "Means", "Memory", "Wire", "leader", "means", "wire"]


def means(
    axis: Axis,
    compress: str | Compressor | None = None,
    kind: Kind = "increments",
    *,
    aggregate: str | Aggregate | None = None,
) -> Means:
    """Means and sums over all workers.

    Args:
        axis: the workers' axis.
        compress: a compressor, its name with options, or None.
        kind: what is averaged, which decides how it is compressed (`exchange.compressed`):
            "increments", after which x_i is the mean; "changes", which the receivers add up, the
            only ones of which there are sums; "levels", where x_i stays away from the mean.
        aggregate: what stands for the mean (see `jaxdist.robust`); None for the mean itself. Of the
            weights it only sees which are 0.

    Raises:
        ValueError: if both a compressor and an aggregate are given, or one cannot be read.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> middle = means("w", aggregate="median")
        >>> of = lambda x: middle.mean(x, middle.init(x), step=0)[0]
        >>> jax.vmap(of, axis_name="w")(jnp.array([1.0, 2.0, 99.0])).tolist()
        [2.0, 2.0, 2.0]
    """
    compressor, chosen = compression.make(compress), robust.make(aggregate)
    if compressor is not None and chosen is not None:
        raise ValueError(
            f"compress={compress!r}, aggregate={aggregate!r}: allowed is one of them; the other "
            f"None, since what is compressed is only added up"
        )
    if chosen is not None:
        return aggregated.Means(axis, chosen)
    return plain.Means(axis) if compressor is None else compressed.Means(axis, compressor, kind)


def wire(compress: str | Compressor | None, rule: str) -> Wire:
    """Messages between neighbours.

    Args:
        compress: a compressor without memory, by name or itself; None for none.
        rule: who asks, for the error.

    Raises:
        ValueError: for a compressor whose receivers need a memory.
    """
    compressor = compression.make(compress)
    if compressor is None:
        return plain.Wire()
    if compressor.feedback:
        raise ValueError(
            f"compress={compress!r}: allowed for {rule} are 'int8', 'bf16' or None; receivers of "
            f"others must remember what came before: for these use choco"
        )
    return compressed.Wire(compressor)


def leader(axis: Axis, compress: str | Compressor | None) -> Leader:
    """What the worker of least score sends to all, or to its group.

    Args:
        axis: the workers' axis.
        compress: a compressor, its name with options, or None.
    """
    compressor = compression.make(compress)
    return plain.Leader(axis) if compressor is None else compressed.Leader(axis, compressor)
