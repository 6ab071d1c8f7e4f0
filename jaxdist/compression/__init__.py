"""Compressors: what a worker sends in place of a tree of float32 arrays.

A compressor is an object with pure functions of one worker. `COMPRESSORS` names them all; `make`
reads one from text, as "top_k(fraction=0.01)".
"""

from jaxdist.compression.base import Compressor
from jaxdist.compression.low_rank import PowerSGD
from jaxdist.compression.quantize import BFloat16, Int8
from jaxdist.compression.sparse import RandomK, Sign, TopK
from jaxdist.names import make_one

COMPRESSORS: dict[str, type[Compressor]] = {
    "int8": Int8,
    "bf16": BFloat16,
    "top_k": TopK,
    "random_k": RandomK,
    "sign": Sign,
    "power_sgd": PowerSGD,
}

__all__ = [
    "COMPRESSORS",
    "BFloat16",
    "Compressor",
    "Int8",
    "PowerSGD",
    "RandomK",
    "Sign",
    "TopK",
    "make",
]


def make(spec: str | Compressor | None) -> Compressor | None:
    """The compressor that `spec` asks for.

    Args:
        spec: a name in `COMPRESSORS`, with options or without, a compressor, or None.

    Raises:
        ValueError: if the name or an option is unknown, more than one is named, or the compressor
            refuses the options.

    Example:
        >>> make("top_k(fraction=0.1)")
        TopK(k=None, fraction=0.1)
        >>> make("int8").chunk
        2048
    """
    return make_one(COMPRESSORS, spec, Compressor, "compress")
