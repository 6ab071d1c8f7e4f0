"""The programs of a run, compiled for a machine, and what they need."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxdist.preflight.flops import flops
from jaxdist.preflight.hlo import Sending, matrix_products, sendings
from jaxdist.steps import at_step
from jaxdist.traffic import Traffic
from jaxdist.training import Run, evaluate
from jaxdist.training.feed import Feed
from jaxdist.training.state import abstract
from jaxdist.training.step import make_step
from jaxdist.training.ways import Rounds
from jaxdist.training.ways.rounds import round_program
from jaxdist.workers import home

HORIZON = 4096
"""Steps of a run that are looked at for what is due."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a program holds on each chip, in bytes.

    Attributes:
        parameters: of the model.
        states: of the optimizer and the rule, of the model (running statistics) and of the run.
        batch: what it is given besides.
        temporaries: what it needs while it runs, activations first of all, and results that do not
            take the place of what it is given.
        code: the program itself.
    """

    parameters: int
    states: int
    batch: int
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program of a run.

    Attributes:
        name: "local step", "sync", "round" or "evaluation".
        steps: training steps in it; 0 for an evaluation.
        seconds: how long it took to compile here.
        memory: on each chip.
        flops: floating-point operations of a chip's matrix products and convolutions.
        accessed: bytes that a chip reads from and writes to its memory, as the compiler counts
            them (what is in a loop once); where it does not, what goes in and out and twice the
            temporaries.
        products: matrix products and convolutions.
        sendings: its collectives.
    """

    name: str
    steps: int
    seconds: float
    memory: Memory
    flops: float
    accessed: float
    products: int
    sendings: tuple[Sending, ...]


def moments(run: Run, traffic: Traffic) -> dict[str, int]:
    """The steps that stand for the others: a local one, and that at which most is sent.

    A rule without local steps has only the latter.
    """
    steps = np.arange(min(run.steps, HORIZON))
    sent = bytes_by_step(traffic, steps)
    idle = ~traffic.pattern(steps).any(0) & (sent == 0)
    found = {"local step": int(idle.argmax())} if idle.any() else {}
    if sent.any():
        found["sync"] = int(sent.argmax())
    return found


def bytes_by_step(traffic: Traffic, steps: np.ndarray) -> np.ndarray:
    """What a worker sends at each of the steps, in bytes."""
    each = np.array([collective.sent for _, collective in traffic.entries], float)
    return each @ traffic.due(steps)


def compile_programs(run: Run, traffic: Traffic) -> list[Program]:
    """Compiles a run's local step, its largest sync, its round if it has rounds, its evaluation.

    Args:
        run: built on the devices of a `Target`.
        traffic: what it sends.

    Raises:
        ValueError: if its rule does not fit the workers.
    """
    state, batch = abstract(run), Feed(run).shapes
    period, programs = run.probe_period, []
    probe = lambda at: batch if period is not None and (at + 1) % period == 0 else None
    for name, at in moments(run, traffic).items():
        step, given = jax.jit(make_step(run), donate_argnums=0), (batch, probe(at))
        programs.append(_compiled(run, name, 1, step, (state, *given), given, at))
    if isinstance(run.way, Rounds):
        start = min(moments(run, traffic).get("sync", 0), max(run.steps - run.way.steps, 0))
        if not traffic.delayed:
            start = max(start + 1 - run.way.steps, 0)
        batches = [(batch, probe(at)) for at in range(start, start + run.way.steps)]
        arguments = (state.shared, state.own, batches)
        program = round_program(run, start)
        programs.append(_compiled(run, "round", run.way.steps, program, arguments, batches))
    prepare, score = evaluate.programs(run)
    own = (state.params, state.model_state)
    (whole, _), (statistics, totals) = _placed(run, jax.eval_shape(prepare, *own, state.opt_state))
    shared = whole, evaluate.chunk_shapes(run)
    besides = shared, statistics, totals
    arguments = (shared, own, statistics, totals)
    programs.append(_compiled(run, "evaluation", 0, score, arguments, besides))
    return programs


def _placed(run: Run, shapes: tuple[Any, Any]) -> tuple[Any, Any]:
    """The shapes of what all workers share and of what each has, where they lie."""
    places = run.workers.replicated, run.workers.sharding
    put = lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
    shared, own = (
        jax.tree.map(lambda x, place=place: put(x, place), tree)
        for tree, place in zip(shapes, places, strict=True)
    )
    return shared, own


def _compiled(
    run: Run,
    name: str,
    steps: int,
    program: Any,
    arguments: Sequence[Any],
    besides: Any,
    at: int | None = None,
) -> Program:
    """Compiles a program of its arguments, of which some are `besides` the run's state."""
    start = time.perf_counter()
    with contextlib.nullcontext() if at is None else at_step(at):
        traced = program.trace(*arguments)
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - start
    text, cost = compiled.as_text(), compiled.cost_analysis() or {}
    memory = _memory(run, besides, compiled.memory_analysis())
    mesh = run.workers.mesh
    homes = [home(device) for device in mesh.devices.flat]
    return Program(
        name=name,
        steps=steps,
        seconds=seconds,
        memory=memory,
        flops=flops(traced.jaxpr) * mesh.shape["worker"] / mesh.size,
        accessed=float(cost.get("bytes accessed", memory.total + memory.temporaries)),
        products=matrix_products(text),
        sendings=tuple(sendings(text, homes)),
    )


def _memory(run: Run, besides: Any, analysis: Any) -> Memory:
    state = abstract(run)
    parameters = bytes_on_a_chip(state.params)
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return Memory(
        parameters=parameters,
        states=bytes_on_a_chip(state) - parameters,
        batch=bytes_on_a_chip(besides),
        temporaries=analysis.temp_size_in_bytes + max(results, 0),
        code=analysis.generated_code_size_in_bytes,
    )


def bytes_on_a_chip(tree: Any) -> int:
    """The bytes that a tree of shapes with shardings takes on each device."""
    one = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(one(x) for x in jax.tree.leaves(tree))
