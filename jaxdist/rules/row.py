"""A row of `RULES`: a rule's factory, and what programs must know of the rule."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax

Options = Mapping[str, Any]


def _nothing(options: Options) -> tuple[str, ...]:
    return ()


def _period(options: Options) -> int | None:
    return options.get("period")


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule's factory with its facts; it is called as the factory, and looks like it.

    An option `period` is the number of steps from one sync to the next, in all rules that have one.

    Attributes:
        factory: `factory(axis, *, ...)`, which makes the transformation.
        first: whether it goes before the local optimizer of its chain.
        momentum: whether it has a momentum in the place of the local optimizer's.
        periodic: whether it syncs at every `period`-th step and at no other.
        late: the option for how many steps after its launch a mean is used; None for at once.
        table: the option that takes rows of how late each worker is: of steps if it is `late`, else
            of whether a worker has arrived. Nobody waits in a rule that has one.
        bound: the option for the most steps in such a table, after which workers do wait.
        asks: `asks(options)`, which of the extra arguments "value", "grad" and "probe_grad" it
            needs with these options (all of them, as `options` gives them).
        barrier: `barrier(options)`, the steps between syncs at which its workers synchronise,
            in groups at least; None if there is no such number.

    Example:
        >>> def halfway(axis, *, period: int = 8): ...
        >>> rule = Rule(halfway, momentum=True)
        >>> rule.__name__, str(inspect.signature(rule)), rule.barrier(rule.options())
        ('halfway', '(axis, *, period: int = 8)', 8)
    """

    factory: Callable[..., optax.GradientTransformationExtraArgs]
    _: dataclasses.KW_ONLY
    first: bool = False
    momentum: bool = False
    periodic: bool = False
    late: str | None = None
    table: str | None = None
    bound: str | None = None
    asks: Callable[[Options], tuple[str, ...]] = _nothing
    barrier: Callable[[Options], int | None] = _period

    def __post_init__(self):
        for name in functools.WRAPPER_ASSIGNMENTS:
            if hasattr(self.factory, name):
                object.__setattr__(self, name, getattr(self.factory, name))
        object.__setattr__(self, "__wrapped__", self.factory)  # for its signature

    def __call__(self, *args: Any, **hyper: Any) -> optax.GradientTransformationExtraArgs:
        """What the factory makes."""
        return self.factory(*args, **hyper)

    def options(self, **given: Any) -> dict[str, Any]:
        """The factory's options, with their defaults where they are not given."""
        parameters = inspect.signature(self.factory).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty} | given
