"""Distributed training rules for JAX, as optax gradient transformations."""

import importlib
from typing import TYPE_CHECKING, Any

from jaxdist._version import __version__

if TYPE_CHECKING:
    from jaxdist import (
        clock as clock,
    )
    from jaxdist import (
        collectives as collectives,
    )
    from jaxdist import (
        compression as compression,
    )
    from jaxdist import (
        flatness as flatness,
    )
    from jaxdist import (
        losses as losses,
    )
    from jaxdist import (
        optimizers as optimizers,
    )
    from jaxdist import (
        rules as rules,
    )
    from jaxdist import (
        stacked as stacked,
    )
    from jaxdist import (
        topology as topology,
    )
    from jaxdist import (
        traffic as traffic,
    )
    from jaxdist.config import load as load
    from jaxdist.workers import Workers as Workers

_ROOMS = (
    "clock",
    "collectives",
    "compression",
    "flatness",
    "losses",
    "optimizers",
    "rules",
    "stacked",
    "topology",
    "traffic",
)
_FROM = {"Workers": "jaxdist.workers", "load": "jaxdist.config"}

__all__ = ["Workers", "__version__", *_ROOMS]


def __getattr__(name: str) -> Any:
    """Imports a room, or what is named here of one, when it is asked for.

    So `import jaxdist` needs neither JAX, for a launcher, nor Flax, for a chain of one's own.
    """
    if name in _ROOMS:
        return importlib.import_module(f"jaxdist.{name}")
    if name in _FROM:
        return getattr(importlib.import_module(_FROM[name]), name)
    raise AttributeError(f"module 'jaxdist' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_FROM])
