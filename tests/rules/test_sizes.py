"""Many leaves and large ones: what grows with them, read from programs that are not run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdist import Workers, collectives
from tests.rules.cases import CASES, PERIOD, PLAIN, W, extra, hyper_of, make, rule_of

LARGEST = np.iinfo(np.int32).max


def program(name, devices, shapes, steps):
    """All workers' program of some steps, known while it is traced, and its arguments' shapes."""
    workers = Workers.create(W, devices=jax.devices()[:devices])
    tx = make(name, workers.axis)

    def one(t, x):
        u, state = jax.tree.map(jnp.zeros_like, x), tx.init(x)
        for step in steps:
            moved, state = tx.update(u, state, x, step=step, **extra(u))
            x = optax.apply_updates(x, moved)
        return t, x

    is_shape = lambda s: isinstance(s, tuple)
    stack = lambda s: jax.ShapeDtypeStruct((W, *s), jnp.float32)
    return workers.spmd(one), (0, jax.tree.map(stack, shapes, is_leaf=is_shape))


def equations(jaxpr):
    """All of a program, those of its branches and loops too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for part in jax.tree.leaves([*eqn.params.values()], is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def narrow(variables):
    whole = [v.aval.dtype for v in variables if jnp.issubdtype(v.aval.dtype, jnp.integer)]
    return any(jnp.iinfo(dtype).bits <= 32 for dtype in whole)


def offsets(eqn):
    """(the largest offset along each axis, the variables that hold offsets) of an operation."""
    shape, numbers = eqn.invars[0].aval.shape, eqn.params.get("dimension_numbers")
    if eqn.primitive.name == "dynamic_slice":
        part, at = eqn.params["slice_sizes"], eqn.invars[1:]
    elif eqn.primitive.name == "dynamic_update_slice":
        part, at = eqn.invars[1].aval.shape, eqn.invars[2:]
    elif eqn.primitive.name == "gather":
        part, at = eqn.params["slice_sizes"], eqn.invars[1:]
    else:
        indexed = numbers.scatter_dims_to_operand_dims
        part, at = [1 if i in indexed else n for i, n in enumerate(shape)], eqn.invars[1:2]
    return [n - p for n, p in zip(shape, part, strict=True)], at


def counts_too_far(eqn):
    """Whether an operation needs a count that its 32 bits do not hold."""
    name = eqn.primitive.name
    if name in ("argmax", "argmin", "iota", "top_k"):
        along = eqn.invars[0].aval.shape if eqn.invars else eqn.outvars[0].aval.shape
        return max(along, default=0) > LARGEST and narrow(eqn.outvars)
    if name in ("dynamic_slice", "dynamic_update_slice", "gather") or name.startswith("scatter"):
        far, at = offsets(eqn)
        return max(far, default=0) > LARGEST and narrow(at)
    return False


# One leaf of more elements than int32 counts, and others that are as many together.
LARGE = {"a": (LARGEST + 9,), "b": {"c": (2**30 + 8,), "d": (2, 2**29 + 8), "e": (8,)}}


# Those that send the indices of entries, and those that look at all coordinates of a worker.
REFUSED = ("top_k", "random_k", "geometric_median", "centered_clipping", "krum", "multi_krum")


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, W])
@pytest.mark.parametrize("name", CASES)
def test_no_offset_is_beyond_int32_or_the_method_is_refused(name, devices):
    run, arguments = program(name, devices, LARGE, range(2 * PERIOD))
    hyper = hyper_of(name)
    default = "top_k" if rule_of(name) == "choco" else ""
    method = hyper.get("compress", hyper.get("aggregate", default)).partition("(")[0]
    if method in REFUSED:
        with pytest.raises(ValueError, match=str(LARGEST)):
            jax.eval_shape(run, *arguments)
    else:
        jaxpr = jax.make_jaxpr(run)(*arguments).jaxpr
        assert not [eqn for eqn in equations(jaxpr) if counts_too_far(eqn)]


@pytest.mark.parametrize("devices", [1, 2, W])
def test_no_offset_of_a_collective_is_beyond_int32(devices):
    workers = Workers.create(W, devices=jax.devices()[:devices])
    axis, groups = workers.axis, [[0, 1], [2, 3]]

    def one(t, x):
        return t, [
            collectives.permute(x, axis, [1, 2, 3, 0]),
            collectives.permute(x, axis, [-1, 3, 1, 2]),
            collectives.sum(x, axis, groups),
            collectives.all_gather(x, axis),
            collectives.from_argmin(x, jnp.float32(0), axis, groups)[0],
            collectives.mean(x, axis)[0],
        ]

    shapes = jax.tree.leaves(LARGE, is_leaf=lambda s: isinstance(s, tuple))
    for dtype in (jnp.int8, jnp.bfloat16):
        x = [jax.ShapeDtypeStruct((W, *s), dtype) for s in shapes]
        jaxpr = jax.make_jaxpr(workers.spmd(one))(0, x).jaxpr
        assert not [eqn for eqn in equations(jaxpr) if counts_too_far(eqn)]


def test_what_reads_the_programs_sees_an_offset_that_is_too_far():
    def write(x, y):
        return jax.lax.dynamic_update_slice(x, y, (np.int32(5),))

    shape = lambda n: jax.ShapeDtypeStruct((n,), jnp.int8)
    for size, far in [(LARGEST + 8, False), (LARGEST + 9, True)]:
        [eqn] = jax.make_jaxpr(write)(shape(size), shape(8)).jaxpr.eqns
        assert counts_too_far(eqn) == far


FEW, MANY = 4, 16


def size_of(name, leaves):
    """How many operations the optimized program of a sync has, those of its fusions too."""
    run, arguments = program(name, W, {f"leaf{i}": (3,) for i in range(leaves)}, [2 * PERIOD - 1])
    return run.lower(*arguments).compile().as_text().count(" = ")


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_a_program_grows_as_its_leaves_do_and_not_faster(name):
    """What all leaves share, as whether they are finite, is not computed again for each of them.

    With 1,000 leaves that takes the compiler most of a minute (see experiments.bench.compile).
    """
    assert size_of(name, MANY) <= 1.1 * (MANY / FEW) * size_of(name, FEW)
