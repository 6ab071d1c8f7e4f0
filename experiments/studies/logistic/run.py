"""SPFB, SGD and L-BFGS: `python -m experiments.studies.logistic.run --workdir DIR`.

Three problems from bundled data, every fifth example of a class for testing: digits (10 classes,
650 parameters) and breast cancer (2 classes, 62), standardised, and breast cancer with one scale
for all features, which is ill-conditioned. The loss is the mean cross-entropy of the training part
plus ridge / 2 ||theta||^2. All methods start from zero, in float32:

- `sgd`, `spfb`, `lspfb` (rank 10): batches of 64, rates eta / (1 + t / t0), the best of a grid of
  eta and t0;
- `spfb, all`, `lspfb, all`: all examples in each step, eta 1: majorisation, nothing to tune;
- `lbfgs`: `optax.lbfgs` with its line search, all examples.

The gap is the loss less the least one, which scipy finds in float64. A pass is as many gradients as
there are examples, L-BFGS's line search included; the curvature of SPFB is not in the passes, but
it is in the seconds, which leave out compilation and evaluation. DIR gets `logistic.json`, `.md`
and `.png`.

These are no runs of `jaxdist.training`, whose step is one gradient of one batch. L-BFGS takes as
many evaluations of the loss as its line search asks for, and counts them; SPFB's update asks for
the features of the batch, of which a trainer tells an optimizer nothing; and the seconds are those
of nothing but the passes, in one loop for all methods, with the rates as arguments of one program.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
import threadpoolctl
from matplotlib.figure import Figure
from scipy.special import logsumexp, softmax

from experiments import cli
from jaxdist import files
from jaxdist.optimizers import lspfb, spfb
from jaxdist.training import metrics

BATCH = 64
PROBLEMS = {  # scikit-learn's loader, whether features are standardised one by one, ridge
    "digits": ("load_digits", True, 1e-2),
    "breast cancer": ("load_breast_cancer", True, 1e-2),
    "breast cancer, one scale": ("load_breast_cancer", False, 1e-4),
}
RATES = {"sgd": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0), "spfb": (1.0, 3.0), "lspfb": (1.0, 3.0, 10.0)}
DECAYS = (2.0, np.inf)  # t0 in passes
TARGETS = (1e-2, 1e-3, 1e-4)

Step = Callable[[Any, jax.Array], Any]
Params = dict[str, Any]


class Data(NamedTuple):
    """Inputs `[n, p]` float32 and classes `[n]` int32, for training and for testing; the ridge."""

    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    ridge: float


class Curve(NamedTuple):
    """The gaps of a run, and the passes and the seconds that led to each."""

    passes: list[float]
    seconds: list[float]
    gaps: list[float]
    accuracy: float
    options: dict[str, float]


def main(argv: Sequence[str] | None = None) -> None:
    """Trains everything, and writes the table, the JSON file and the plot."""
    parser = cli.Parser(
        prog="python -m experiments.studies.logistic.run",
        description="SPFB and LSPFB against SGD and L-BFGS on logistic regression.",
    )
    parser.add_argument("--workdir", required=True, type=cli.path, help="folder for the results")
    parser.add_argument("--passes", type=int, default=20, help="passes over the data")
    parser.add_argument("--seed", type=int, default=0, help="decides the order of the examples")
    args = parser.parse_args(argv)
    with cli.clean_errors(traceback=False):
        if args.passes < 1:
            raise ValueError(f"--passes={args.passes}: allowed are integers from 1")
        cli.check_seeds([args.seed])
        try:
            args.workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--workdir {args.workdir}: {error.strerror}") from None
        jax.config.update("jax_platforms", "cpu")
        cli.check_devices()
        with threadpoolctl.threadpool_limits(1):  # LAPACK's threads cost more than they give here
            found = {
                name: compare(load(*how), args.passes, args.seed) for name, how in PROBLEMS.items()
            }
    report = "\n".join(f"{name}:\n\n{table(curves)}" for name, curves in found.items())
    as_json = {
        name: {method: curve._asdict() for method, curve in curves.items()}
        for name, curves in found.items()
    }
    metrics.write_json(args.workdir / "logistic.json", as_json)
    files.write_atomically(args.workdir / "logistic.md", report)
    plot(found, args.workdir / "logistic.png")
    print(f"{report}\n{args.workdir / 'logistic.png'}")


def load(function: str, standardised: bool, ridge: float) -> Data:
    """One of scikit-learn's bundled data sets, centred and scaled by its training part."""
    from sklearn import datasets  # takes a second to import

    x, y = getattr(datasets, function)(return_X_y=True)
    test = np.zeros(len(y), bool)
    test[np.argsort(y, kind="stable")[::5]] = True
    spread = x[~test].std(0) if standardised else x[~test].std(0).max()
    x = ((x - x[~test].mean(0)) / np.where(spread > 0, spread, 1)).astype(np.float32)
    y = y.astype(np.int32)
    return Data(x[~test], y[~test], x[test], y[test], ridge)


def compare(data: Data, passes: int, seed: int) -> dict[str, Curve]:
    """Every method's curve; of a grid the one that ends lowest."""
    least, found, t0 = optimum(data), {}, len(data.y) // BATCH
    makers = {
        "sgd": lambda rate: optax.with_extra_args_support(optax.sgd(rate)),
        "spfb": lambda rate: spfb(rate, damping=data.ridge),
        "lspfb": lambda rate: lspfb(rate, damping=data.ridge),
    }
    for name, make in makers.items():
        step, rng = stochastic(data, make), np.random.default_rng(seed)
        orders = [rng.permutation(len(data.y)) for _ in range(passes)]
        curves = []
        for rate in RATES[name]:
            for decay in DECAYS:
                start = (
                    make(lambda t: t).init(zeros(data)),
                    jnp.float32(rate),
                    jnp.float32(decay * t0),
                )
                options = {"learning_rate": rate, "t0_in_passes": decay}
                curves.append(follow(data, step, (zeros(data), *start), orders, least, options))
        found[name] = min(curves, key=lambda curve: np.nan_to_num(curve.gaps[-1], nan=np.inf))
    for name, tx in {
        "spfb, all": spfb(damping=data.ridge, averaging=1.0),
        "lspfb, all": lspfb(damping=data.ridge, averaging=1.0),
        "lbfgs": optax.lbfgs(),
    }.items():
        start = zeros(data), tx.init(zeros(data))
        found[name] = follow(data, full_batch(data, tx), start, [None] * passes, least, {})
    return found


def zeros(data: Data) -> Params:
    """The parameters at the start."""
    num = int(data.y.max()) + 1
    return {"bias": jnp.zeros(num), "kernel": jnp.zeros((data.x.shape[1], num))}


def loss(w: Params, x: jax.Array, y: jax.Array, ridge: float) -> jax.Array:
    """The regularised loss of some examples."""
    logits = x @ w["kernel"] + w["bias"][None]
    fit = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    return fit + ridge / 2 * optax.tree.norm(w, squared=True)


def stochastic(data: Data, make: Callable[..., Any]) -> Step:
    """A pass over the data in batches: `step((w, state, eta, t0), order)` gives its like.

    The rates are arguments, so that a grid of them is compiled once.
    """
    per_pass = len(data.y) // BATCH
    x, y = jnp.asarray(data.x), jnp.asarray(data.y)

    @jax.jit
    def step(carry, order):
        *start, eta, t0 = carry
        tx = make(lambda t: eta / (1 + t / t0))

        def one(carry, rows):
            w, state = carry
            grads = jax.grad(loss)(w, x[rows], y[rows], data.ridge)
            updates, state = tx.update(grads, state, w, features=x[rows])
            return (optax.apply_updates(w, updates), state), None

        rows = order[: per_pass * BATCH].reshape(per_pass, BATCH)
        (w, state), _ = jax.lax.scan(one, tuple(start), rows)
        return w, state, eta, t0

    return step


def full_batch(data: Data, tx: optax.GradientTransformationExtraArgs) -> Step:
    """A step on all examples: `step((w, state), None)` gives its like."""
    x, y = jnp.asarray(data.x), jnp.asarray(data.y)
    of = lambda w: loss(w, x, y, data.ridge)

    @jax.jit
    def step(carry, _):
        w, state = carry
        if optax.tree.get(state, "value") is None:
            updates, state = tx.update(jax.grad(of)(w), state, w, features=x)
        else:  # a line search has the gradient already
            value, grads = optax.value_and_grad_from_state(of)(w, state=state)
            updates, state = tx.update(grads, state, w, value=value, grad=grads, value_fn=of)
        return optax.apply_updates(w, updates), state

    return step


def follow(
    data: Data,
    step: Step,
    start: Any,
    orders: Sequence[np.ndarray | None],
    least: float,
    options: dict[str, float],
) -> Curve:
    """Takes steps until the passes are used up, and tells what became of the loss."""
    jax.block_until_ready(step(step(start, orders[0]), orders[0]))  # compiles

    def gap(w):
        theta = flat(w)
        return float(objective(theta, data)[0] - least) if np.isfinite(theta).all() else np.nan

    carry, passes, seconds, gaps = start, [0.0], [0.0], [gap(start[0])]
    while passes[-1] < len(orders):
        began = time.perf_counter()
        carry = jax.block_until_ready(step(carry, orders[len(passes) - 1]))
        seconds.append(seconds[-1] + time.perf_counter() - began)
        searched = optax.tree.get(carry[1], "num_linesearch_steps", default=1)
        passes.append(passes[-1] + float(searched))
        gaps.append(gap(carry[0]))
    w = carry[0]
    right = (data.test_x @ w["kernel"] + w["bias"][None]).argmax(1) == data.test_y
    return Curve(passes, seconds, gaps, float(right.mean()), options)


def flat(w: Params) -> np.ndarray:
    """The parameters with the bias as the last row, `[(p + 1) K]` float64."""
    return np.vstack([w["kernel"], w["bias"]]).astype(np.float64).ravel()


def objective(theta: np.ndarray, data: Data) -> tuple[float, np.ndarray]:
    """The loss of all examples and its gradient, in float64."""
    x = np.append(data.x, np.ones_like(data.x[:, :1]), axis=1).astype(np.float64)
    logits = x @ theta.reshape(x.shape[1], -1)
    labels = np.eye(logits.shape[1])[data.y]
    fit = (logsumexp(logits, axis=1) - (labels * logits).sum(1)).mean()
    grad = x.T @ (softmax(logits, axis=1) - labels) / len(x)
    return fit + data.ridge / 2 * theta @ theta, grad.ravel() + data.ridge * theta


def optimum(data: Data) -> float:
    """The least loss."""
    options = {"ftol": 0.0, "gtol": 1e-9, "maxiter": 10_000, "maxfun": 20_000, "maxcor": 50}
    found = scipy.optimize.minimize(
        objective, flat(zeros(data)), (data,), "L-BFGS-B", jac=True, options=options
    )
    return found.fun


def table(curves: Mapping[str, Curve]) -> str:
    """What each method needs for the targets, as Markdown."""
    heads = [f"to {target:g}: passes | seconds" for target in TARGETS]
    rows = [
        f"| method | {' | '.join(heads)} | last gap | seconds | test accuracy |",
        f"|---{'|---' * (2 * len(heads) + 3)}|",
    ]
    for name, curve in curves.items():
        cells = []
        for target in TARGETS:
            there = np.flatnonzero(np.array(curve.gaps) <= target)
            at = there[0] if len(there) else None
            cells.append("never" if at is None else f"{curve.passes[at]:.0f}")
            cells.append("" if at is None else f"{curve.seconds[at]:.3f}")
        name += "".join(f", {key} {value:g}" for key, value in curve.options.items())
        cells += [f"{curve.gaps[-1]:.1e}", f"{curve.seconds[-1]:.2f}", f"{curve.accuracy:.2%}"]
        rows.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join([*rows, ""])


def plot(found: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    """The gap against passes and against seconds, a row for each data set."""
    figure = Figure(figsize=(11, 4 * len(found)), layout="constrained")
    panels = figure.subplots(len(found), 2, squeeze=False)
    for row, (name, curves) in zip(panels, found.items(), strict=True):
        for axes, quantity in zip(row, ("passes", "seconds"), strict=True):
            for method, curve in curves.items():
                gaps = np.maximum(curve.gaps, 1e-7)  # float32 has no more
                axes.plot(getattr(curve, quantity), gaps, ".-", ms=3, label=method)
            axes.set(title=name, xlabel=quantity, ylabel="loss less the least one", yscale="log")
            axes.grid(alpha=0.3)
        row[1].set_xscale("log")  # without the start, at 0
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right center")
    files.write_figure(path, figure)


if __name__ == "__main__":
    main()
