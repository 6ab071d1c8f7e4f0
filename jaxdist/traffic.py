"""What is sent: the bytes of a rule, counted while it is traced, and those of a compiled program.

`Traffic.of` traces a transformation once and knows from then on, exactly and without running it,
what any step sends. `compiled` reads the collectives out of compiled HLO. Tests hold one against
the other.
"""

import contextlib
import contextvars
import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

# The step at which a traced collective runs: a function of (arrays of) steps, vectorised.
Due = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation as one worker sees it.

    Attributes:
        kind: "all-reduce", "reduce-scatter", "all-gather", "all-to-all" or "collective-permute".
        bytes: bytes of the full array that is reduced, gathered or moved.
        members: the number of workers that take part.
        messages: of a collective-permute, how many workers send.
        source: of a traced collective-permute, for each worker the one that it receives from, or
            -1 for none. Like `groups` it is no part of what makes two collectives equal.
        groups: the workers that take part together, if they are not all of them.
    """

    kind: str
    bytes: int
    members: int
    messages: int = 0
    source: tuple[int, ...] = dataclasses.field(default=(), compare=False)
    groups: tuple[tuple[int, ...], ...] = dataclasses.field(default=(), compare=False)

    @property
    def sent(self) -> int:
        """Bytes that each worker sends, with ring algorithms; the mean where workers differ.

        With n members and b bytes: all-reduce 2 (n - 1) / n b; reduce-scatter, all-gather and
        all-to-all (n - 1) / n b; collective-permute b for each message, over n.
        """
        if self.kind == "collective-permute":
            return math.ceil(self.messages * self.bytes / self.members)
        rounds = 2 if self.kind == "all-reduce" else 1
        return math.ceil(rounds * (self.members - 1) * self.bytes / self.members)


@dataclasses.dataclass
class _Tally:
    due: tuple[Due, ...] = ()
    entries: list[tuple[tuple[Due, ...], Collective]] = dataclasses.field(default_factory=list)
    conditions: list[tuple[Due, ...]] = dataclasses.field(default_factory=list)


_TALLY: contextvars.ContextVar[_Tally | None] = contextvars.ContextVar("tally", default=None)


def record(
    kind: str,
    tree: Any,
    members: int,
    messages: int = 0,
    *,
    source: Sequence[int] = (),
    groups: Sequence[Sequence[int]] | None = None,
) -> None:
    """Notes a collective over `tree` in the tally that is open, if one is."""
    if (tally := _TALLY.get()) is not None:
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
        source = tuple(int(s) for s in source)
        groups = tuple(tuple(int(i) for i in group) for group in groups or ())
        collective = Collective(kind, size, members, messages, source, groups)
        tally.entries.append((tally.due, collective))


@contextlib.contextmanager
def only_when(*due: Due) -> Iterator[None]:
    """What is recorded inside runs only on the steps for which `due`, if given, holds."""
    tally = _TALLY.get() or _Tally()
    before, tally.due = tally.due, (*tally.due, *due)
    tally.conditions.append(tally.due)
    try:
        yield
    finally:
        tally.due = before


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What a transformation sends at every step.

    Attributes:
        entries: each collective, and the conditions under which it runs.
        conditions: every condition of the transformation, sent or not: what was launched earlier
            and is used at a step has one too.

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxdist
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> tx = optax.chain(optax.sgd(0.1), jaxdist.rules.local_sgd(workers.axis, period=4))
        >>> traffic = Traffic.of(tx, {"w": jnp.zeros(100)}, num_workers=8)
        >>> [len(traffic.at(step)) for step in range(5)]
        [0, 0, 0, 1, 0]
        >>> traffic.bytes_sent(0, 8)  # 2 syncs, 2 * 7 / 8 * 404 bytes each
        1414
    """

    entries: tuple[tuple[tuple[Due, ...], Collective], ...]
    conditions: tuple[tuple[Due, ...], ...] = ()

    @classmethod
    def of(
        cls,
        tx: optax.GradientTransformation,
        params: Any,
        num_workers: int,
        *,
        only: Sequence[str] | None = None,
        **extra: Any,
    ) -> "Traffic":
        """Traces `tx.update` once, abstractly, on `num_workers` workers.

        Args:
            tx: a transformation whose rules were made for `Workers.axis`: "worker" or
                `("worker", "local")`.
            params: one worker's parameters: arrays or `jax.ShapeDtypeStruct`.
            num_workers: W.
            only: the parts of rules to look at, as in `rules.base.rule`; None for all.
            **extra: further extra arguments of one worker that the transformation needs: functions,
                or trees of numbers, arrays or `jax.ShapeDtypeStruct`, as `features`; `step`,
                `value`, `grad`, `probe_grad` and `grad_fn` are given already.
        """
        tx = optax.with_extra_args_support(tx)
        functions = {"grad_fn": lambda params, _: params}
        functions |= {name: x for name, x in extra.items() if callable(x)}
        extra = {name: x for name, x in extra.items() if not callable(x)}

        def one(step, params, extra):
            kwargs = {"value": jnp.float32(0), "grad": params, "probe_grad": params} | extra
            kwargs |= functions | ({} if only is None else {"only": only})
            updates = jax.tree.map(jnp.zeros_like, params)  # of an optimizer, not the gradient
            return tx.update(updates, tx.init(params), params, step=step, **kwargs)

        def of_all(x):
            x = jax.eval_shape(jnp.asarray, x)
            return jax.ShapeDtypeStruct((num_workers, 1, *x.shape), x.dtype)

        stacked = jax.tree.map(of_all, (params, extra))
        inner = jax.vmap(one, in_axes=(None, 0, 0), axis_name="local")
        outer = jax.vmap(inner, in_axes=(None, 0, 0), axis_name="worker")
        token = _TALLY.set(tally := _Tally())
        try:
            jax.eval_shape(outer, jax.ShapeDtypeStruct((), jnp.int32), *stacked)
        finally:
            _TALLY.reset(token)
        return cls(tuple(tally.entries), tuple(tally.conditions))

    def due(self, steps: np.ndarray) -> np.ndarray:
        """Whether each entry runs at each of the steps `[N]`: bool `[entries, N]`."""
        return _hold([due for due, _ in self.entries], steps)

    def pattern(self, steps: np.ndarray) -> np.ndarray:
        """Whether each condition holds at each of the steps `[N]`: bool `[conditions, N]`."""
        return _hold(self.conditions, steps)

    @property
    def delayed(self) -> bool:
        """Whether something is done at a sync without sending: with what was launched earlier."""
        sends = lambda condition: any(due[: len(condition)] == condition for due, _ in self.entries)
        return not all(map(sends, self.conditions))

    def at(self, step: int) -> list[Collective]:
        """The collectives that run at `step`."""
        return [c for due, c in self.entries if all(bool(d(np.int64(step))) for d in due)]

    def bytes_sent(self, start: int, stop: int) -> int:
        """Bytes that each worker sends in the steps `start <= step < stop`."""
        runs = self.due(np.arange(start, stop)).sum(1)
        return sum(int(n) * c.sent for n, (_, c) in zip(runs, self.entries, strict=True))


def _hold(conditions: Sequence[tuple[Due, ...]], steps: np.ndarray) -> np.ndarray:
    """Whether all parts of each condition hold at each step."""
    holds = np.ones((len(conditions), len(steps)), bool)
    for row, condition in zip(holds, conditions, strict=True):
        for due in condition:
            row &= np.asarray(due(steps))
    return holds


_OPERATION = re.compile(
    r"= (?P<type>\(.*?\)|\S+) (?P<kind>all-reduce|all-gather|reduce-scatter|collective-permute|"
    r"all-to-all)(?P<start>-start)?\((?P<rest>.*)"
)
_ARRAY = re.compile(r"(pred|[a-z]+\d+)(?:e\w+)?\[([\d,]*)\]")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")
_DEVICES = re.compile(r"num_partitions=(\d+)")
_LIST = re.compile(r"replica_groups=\{(\{[\d,{}]*\})\}")
_IOTA = re.compile(r"replica_groups=\[(?:\d+,)?(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_AXES = re.compile(r"replica_groups=@?mesh\w*\[(?P<mesh>[^\]]*)\][^{]*\{(?P<axes>[^}]*)\}")


def compiled(hlo: str) -> list[Collective]:
    """Reads the collectives of a compiled program, as `f.lower(...).compile().as_text()` gives it.

    Each operation is listed once, wherever it stands: those of a branch too, whether or not a step
    takes it.

    Args:
        hlo: the text of the compiled module.

    Returns:
        The collectives in the order of the text. The workers are the devices.
    """
    operations = []
    devices = _DEVICES.search(hlo)
    num = int(devices[1]) if devices else 1
    for line in hlo.splitlines():
        if (match := _OPERATION.search(line)) is None:
            continue
        first = match["start"] and match["kind"] in ("all-gather", "collective-permute")
        size = array_bytes(match["type"], result_of_start=bool(first))
        groups, members, messages = groups_of(line, num), num, 0
        if match["kind"] == "collective-permute":
            messages = len([1 for a, b in groups if a != b])
        else:
            members = len(groups[0])
        if match["kind"] == "reduce-scatter":
            size *= members
        operations.append(Collective(match["kind"], size, members, messages))
    return operations


def groups_of(line: str, num: int) -> list[list[int]]:
    """The devices that take part together in a collective of a compiled program.

    Args:
        line: the line of the collective.
        num: the devices of the program.

    Returns:
        Lists of devices, by their places in the program; of a collective-permute the pairs of
        sender and receiver.

    Raises:
        ValueError: if they are written in a form that is not known.
    """
    if match := _PAIRS.search(line):
        return [[int(a), int(b)] for a, b in re.findall(r"(\d+),(\d+)", match[1])]
    if match := _LIST.search(line):
        groups = re.findall(r"\{([\d,]+)\}", match[1])
        return [[int(i) for i in group.split(",")] for group in groups]
    if match := _IOTA.search(line):
        shape = [int(n) for n in match[2].split(",")]
        order = np.arange(math.prod(shape)).reshape(shape)
        if match[3]:
            order = order.transpose([int(n) for n in match[3].split(",")])
        return order.reshape(-1, int(match[1])).tolist()
    if match := _AXES.search(line):
        return _along(match["mesh"], match["axes"])
    if "replica_groups=" in line and "replica_groups={}" not in line:
        raise ValueError(f"replica_groups of an unknown form: {line.strip()}")
    return [[*range(num)]]


def _along(mesh: str, axes: str) -> list[list[int]]:
    """The devices along some axes of a mesh: `'x'=2,'y'=4` and `'y'`, or `'y':(1)2` for a part.

    `(1)2` is the second of three parts of an axis, whose lengths are 1, 2 and what is left.
    """
    lengths = {name: int(n) for name, n in re.findall(r"'?(\w+)'?=(\d+)", mesh)}
    along = re.findall(r"'?(\w+)'?(?::\((\d+)\)(\d+))?", axes)
    parts = {name: (int(before or 1), int(part or lengths[name])) for name, before, part in along}
    shape, chosen = [], []
    for name, length in lengths.items():
        before, part = parts.get(name, (1, 1))
        shape += [before, part, length // before // part]
        chosen += [False, name in parts, False]
    order = np.arange(math.prod(shape)).reshape(shape)
    axis_of = np.argsort(chosen, kind="stable")
    members = math.prod(part for _, part in parts.values())
    return order.transpose(axis_of).reshape(-1, members).tolist()


def array_bytes(hlo_type: str, *, result_of_start: bool = False) -> int:
    """The bytes of the arrays of an HLO type, as `f32[2,3]` or `(f32[2], u32[])`.

    Args:
        hlo_type: the type.
        result_of_start: whether it is that of an instruction that starts another one: (operands,
            results[, contexts]), of which the results count; a context is u32[].
    """
    arrays = _ARRAY.findall(hlo_type)
    if result_of_start:
        arrays = [array for array in arrays if array != ("u32", "")] or arrays[:2]
        arrays = arrays[len(arrays) // 2 :]
    return sum(_bytes(dtype, shape) for dtype, shape in arrays)


def _bytes(dtype: str, shape: str) -> int:
    bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
    return math.prod(int(n) for n in shape.split(",") if n) * bits // 8
