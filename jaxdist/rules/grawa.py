"""MGRAWA and LGRAWA: pulled to a centre that trusts workers in flat regions."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist import checks, exchange
from jaxdist.collectives import Axis
from jaxdist.compression import Compressor
from jaxdist.rules import base
from jaxdist.trees import apart, choose, path_name

# The norm's floor: a worker or leaf without a gradient gets a large weight, not an infinite one.
FLOOR = 1e-12
LayerAxis = int | Callable[[str], int | None] | None


class GrawaState(NamedTuple):
    """State of `mgrawa` and `lgrawa`.

    Attributes:
        count: steps taken.
        norm: A_i, the running mean of gradient norms: a scalar, or a tree of one for each layer.
        norm_count: k, how many norms are in it.
        center: the centre of the last sync, () without prox.
        metrics: weight, beta_i of the last sync (a scalar, or a tree); center_distance,
            ||x_i - C|| before the last pull; gradient_norm, the norms it came from.
        memory: of the compressed exchange, () without compression.
    """

    count: base.Count
    norm: Any
    norm_count: jax.Array
    center: Any
    metrics: dict[str, Any]
    memory: Any


def mgrawa(
    axis: Axis,
    *,
    period: int = 32,
    strength: float = 0.5,
    prox: float = 0.01,
    norm: Literal["sum_of_leaf_norms", "l2"] = "sum_of_leaf_norms",
    norm_source: Literal["training", "probe"] = "training",
    decay: float | None = None,
    layer_axis: LayerAxis = None,
    compress: str | Compressor | None = None,
) -> optax.GradientTransformationExtraArgs:
    """MGRAWA: workers are pulled to a mean weighted by inverse gradient norms.

    Every step:   x_i <- x_i + (prox / period) (C - x_i)
    At a sync:    a_i = sum_l ||g_i,l||_2;  A_i <- decay A_i + (1 - decay) a_i
                  beta_i = (1 / A_i) / sum_j (1 / A_j);  C = sum_j beta_j x_j
                  x_i <- x_i + strength (C - x_i)

    C is the centre of the last sync, at first the initial parameters. With
    `norm_source="training"`, A is the running mean of the norms of the training gradients (extra
    argument `grad`), begun afresh after each sync. With "probe", it is updated once a sync with the
    gradient of a batch of the whole training set (extra argument `probe_grad`), and goes on. Norms
    are in float32. A worker whose parameters or norms are not finite has weight 0; if all have,
    nobody is pulled. Sends one all-reduce of d + 1 numbers a sync.

    Args:
        axis: the workers' axis.
        period: tau, steps from one sync to the next.
        strength: lambda, the pull at a sync, in [0, 1].
        prox: mu, the pull to the last centre, spread over the steps of a period, in [0, 1].
        norm: "sum_of_leaf_norms" (the released code's) or "l2" (of the whole gradient).
        norm_source: of which gradient the norms are: "training", the local steps', or "probe", that
            of a batch of the whole training set at each sync.
        decay: of the running mean, in [0, 1); None for 0.85 (training) or 0.9 ** 8 (probe).
        layer_axis: for scanned layers: the axis along which a leaf stacks layers, each of which
            then has a norm of its own; a function of the leaf's path ("layers/kernel") that gives
            one or None; or None.
        compress: how x - C travels, C the last centre, as "int8" or "top_k(fraction=0.01)" (see
            `jaxdist.compression`); None for x as it is. Then all workers must start from the same
            parameters.

    Raises:
        ValueError: if `period` < 1, `strength` or `prox` is outside [0, 1], `decay` outside [0, 1),
            or `norm`, `norm_source` or the compressor unknown; in `init`, if it cannot work on the
            leaves; in `update`, if the gradient is missing.

    Example:
        >>> import jax, jax.numpy as jnp, jaxdist
        >>> rule = jaxdist.rules.mgrawa("w", period=1, strength=1.0, prox=0.0)
        >>> step = lambda g, p: p + rule.update(0 * g, rule.init(p), p, grad=g)[0]
        >>> x = jax.vmap(step, axis_name="w")(jnp.array([1.0, 3.0]), jnp.array([0.0, 4.0]))
        >>> x.tolist()  # weights 3/4 and 1/4
        [1.0, 1.0]

    Reference:
        Dimlioglu and Choromanska, AISTATS 2024. Read in the authors' code (tolgadimli/GRAWA:
        dist_mgrawa_train, GRAWAOptimWrapper); the paper's body was not read.
    """
    checks.check_choice("norm", norm, ("sum_of_leaf_norms", "l2"))

    def model_norm(norms):
        norms = jax.tree.leaves(norms)
        if norm == "l2":
            return jnp.sqrt(sum(jnp.square(n).sum() for n in norms))
        return sum(n.sum() for n in norms)

    means = exchange.means(axis, compress, "levels")
    return _grawa(
        "mgrawa", axis, period, strength, prox, norm_source, decay, layer_axis, means, model_norm
    )


def lgrawa(
    axis: Axis,
    *,
    period: int = 32,
    strength: float = 0.5,
    prox: float = 0.01,
    norm_source: Literal["training", "probe"] = "training",
    decay: float | None = None,
    layer_axis: LayerAxis = None,
    skip_unused: bool = False,
    compress: str | Compressor | None = None,
) -> optax.GradientTransformationExtraArgs:
    """LGRAWA: `mgrawa` with a weight for each layer.

    beta_i,l = (1 / A_i,l) / sum_j (1 / A_j,l);  C_l = sum_j beta_j,l x_j,l

    A layer is a leaf of the parameters (a kernel and its bias are two), or a slice of one along
    `layer_axis`. By the equation a layer is taken almost wholly from a worker that had no gradient
    there since the last sync, as of an expert or an embedding that its batches did not use: see
    `skip_unused`. Sends one all-reduce of d + L numbers a sync.

    Args:
        axis: the workers' axis.
        period: tau, steps from one sync to the next.
        strength: lambda, the pull at a sync, in [0, 1].
        prox: mu, the pull to the last centre, spread over the steps of a period, in [0, 1].
        norm_source: of which gradient the norms are: "training", the local steps', or "probe", that
            of a batch of the whole training set at each sync.
        decay: of the running mean, in [0, 1); None for 0.85 (training) or 0.9 ** 8 (probe).
        layer_axis: for scanned layers: the axis along which a leaf stacks layers, each of which
            then has a weight of its own; a function of the leaf's path ("layers/kernel") that gives
            one or None; or None.
        skip_unused: whether a worker has weight 0 for a layer whose norm is 0; of a layer that
            nobody used, nobody is pulled.
        compress: how x - C travels, C the last centre, as "int8" or "top_k(fraction=0.01)" (see
            `jaxdist.compression`); None for x as it is. Then all workers must start from the same
            parameters.

    Raises:
        ValueError: if `period` < 1, `strength` or `prox` is outside [0, 1], `decay` outside [0, 1),
            or `norm_source` or the compressor unknown; in `init`, if it cannot work on the leaves;
            in `update`, if the gradient is missing.

    Example:
        >>> import jax, optax, jaxdist
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> tx = optax.chain(optax.sgd(0.1), jaxdist.rules.lgrawa(workers.axis, period=16))

    Reference:
        Dimlioglu and Choromanska, AISTATS 2024. Read in the authors' code (tolgadimli/GRAWA:
        dist_lgrawa_train); the paper's body was not read.
    """
    means, each = exchange.means(axis, compress, "levels"), lambda norms: norms
    return _grawa(
        "lgrawa",
        axis,
        period,
        strength,
        prox,
        norm_source,
        decay,
        layer_axis,
        means,
        each,
        skip_unused,
    )


def asks(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Which gradient `mgrawa` and `lgrawa` need with these options, as a fact of their rows."""
    return ("grad",) if options["norm_source"] == "training" else ("probe_grad",)


def _grawa(
    name,
    axis,
    period,
    strength,
    prox,
    norm_source,
    decay,
    layer_axis,
    means,
    combine,
    skip_unused=False,
):
    base.check_axis(axis)
    checks.check_period("period", period)
    checks.check_between("strength", strength, 0, 1)
    checks.check_between("prox", prox, 0, 1)
    checks.check_choice("norm_source", norm_source, ("training", "probe"))
    if decay is None:
        decay = 0.85 if norm_source == "training" else 0.9**8
    checks.check_between("decay", decay, 0, 1 - 1e-9)
    keep = base.may_be_positive(prox)
    training = norm_source == "training"

    def norms_of(grad):
        return combine(leaf_norms(grad, layer_axis))

    def add_norm(state, grad):
        """A <- decay A + (1 - decay) a;  k <- k + 1."""
        norm = jax.tree.map(lambda A, a: decay * A + (1 - decay) * a, state.norm, norms_of(grad))
        return state._replace(norm=norm, norm_count=state.norm_count + 1)

    def init(params):
        zero = lambda norm: jnp.zeros(norm.shape, norm.dtype)
        zeros = apart(lambda p: jax.tree.map(zero, jax.eval_shape(norms_of, p)), params)
        metrics = {
            "weight": zeros,
            "gradient_norm": zeros,
            "center_distance": jnp.zeros((), jnp.float32),
        }
        center, memory = params if keep else (), means.init(params)
        return GrawaState(base.counter(), zeros, base.counter(), center, metrics, memory)

    def local(x, state, extra):
        if training:
            state = add_norm(state, extra.need("grad", name))
        return (base.pull(x, state.center, prox / period) if keep else x), state

    def kept(total, center, before):
        if jax.tree.structure(total) != jax.tree.structure(center):
            return choose(total > 0, center, before)
        return jax.tree.map(lambda t, c, b: jnp.where(t > 0, c, b), total, center, before)

    def sync(x, state, extra):
        if not training:
            state = add_norm(state, extra.need("probe_grad", f"{name} with norm_source='probe'"))
        left = jnp.asarray(decay, jnp.float32) ** state.norm_count
        corrected = jax.tree.map(lambda A: A / (1 - left), state.norm)
        usable = base.healthy(x) & base.healthy(corrected)
        trusted = lambda A: usable & (A > 0) if skip_unused else usable
        u = jax.tree.map(lambda A: jnp.where(trusted(A), 1 / jnp.maximum(A, FLOOR), 0), corrected)
        center, total, memory = means.mean(x, state.memory, extra.step, u)
        metrics = {
            "weight": jax.tree.map(lambda u, t: u / jnp.where(t > 0, t, 1), u, total),
            "gradient_norm": corrected,
            "center_distance": base.distance(x, center),
        }
        forget = training | ~usable
        state = state._replace(
            norm=jax.tree.map(lambda A: jnp.where(forget, 0, A), state.norm),
            norm_count=jnp.where(forget, 0, state.norm_count),
            center=kept(total, center, state.center) if keep else (),
            metrics=metrics,
            memory=memory,
        )
        return base.pull(x, center, strength), state

    return base.rule(init, (base.every(period), sync), local=local)


def leaf_norms(tree: Any, layer_axis: LayerAxis = None) -> Any:
    """The L2 norm of every leaf, or of every slice along its layer axis, in float32.

    Args:
        tree: arrays.
        layer_axis: the axis along which a leaf stacks layers, or a function of the leaf's path that
            gives one or None; or None.

    Returns:
        A tree of scalars, or of arrays with the leaf's rank and length 1 except along its layer
        axis.
    """

    def one(path, x):
        axis = layer_axis(path_name(path)) if callable(layer_axis) else layer_axis
        square = jnp.square(x.astype(jnp.float32))
        if axis is None:
            return jnp.sqrt(square.sum())
        if not -x.ndim <= axis < x.ndim:
            raise ValueError(
                f"layer_axis={axis} for leaf {path_name(path)!r}: allowed are its {x.ndim} axes, "
                f"or None"
            )
        others = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
        return jnp.sqrt(square.sum(others, keepdims=True))

    return jax.tree_util.tree_map_with_path(one, tree)
