"""Sharpness: `python -m experiments.bench.sharpness [--pairs 3] [--examples 32] [--batch 32]`.

Measures of ResNet-20 after some steps of SGD on digits of 32 x 32 x 3, in evaluation mode, ours
against PyHessian's method in PyTorch (`torch_hessian`): the same parameters, data and machine, as
many threads, float32, in turn, at the same accuracy. `ratio`: their seconds over ours, of

    products     20 products with the Hessian, of Hutchinson's estimator on both sides, each side's
                 preparation included; `products_per_second`
    trace        ours with 20 probes outside a Krylov space of 20 products; theirs by Hutchinson's
                 estimator until the standard error is no larger, which takes minutes: timed once
    eigenvalue   4 products of Lanczos, against power iteration until it is as near to the value
                 (that of 30 products of Lanczos) as ours is, or 0.1 % near
    dimension    the effective dimension by 2 x 20 products of Lanczos on both sides

Ours are timed compiled. Where the examples are several batches, PyHessian differentiates each anew
for each product.

`--check` compares the values instead, of two batches of 8 in float64: a product with one vector,
the eigenvalue, and the estimates within their errors.
"""

import argparse
import functools
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.arguments import POSITIVE
from experiments.bench import common
from experiments.bench.torch_hessian import TorchHessian
from jaxdist import sharpness
from jaxdist.data import Dataset, digits, normalize
from jaxdist.losses import cross_entropy
from jaxdist.models import Model, resnet20

PROBES, KRYLOV, EXACT, WITHIN, MOST = 20, 20, 30, 1e-3, 2000
TRAINING = {"steps": 40, "batch": 32}
DIMENSION = {"num_steps": 20, "num_samples": 2, "shift": 1.0}
OURS: dict[str, Callable[..., sharpness.Measured]] = {
    "products": partial(sharpness.trace, num_samples=PROBES),
    "trace": partial(sharpness.trace, num_samples=PROBES, num_steps=KRYLOV),
    "eigenvalue": partial(sharpness.largest_eigenvalue, num_steps=4),
    "dimension": partial(sharpness.effective_dimension, **DIMENSION),
}
TOLERANCE = {"product": 1e-8, "eigenvalue": 1e-2}
ERRORS = 4  # standard errors that estimates may be apart


class Subject:
    """The network, the data, and our side of the measures."""

    def __init__(self, examples: int, batch: int, dtype: Any = np.float32):
        dataset = digits(size=32, channels=3)
        images, labels = dataset.train[np.arange(examples)]
        images = normalize(images, dataset.mean, dataset.std)
        model = resnet20(dataset.input_shape, dataset.num_classes)
        images, start = jax.tree.map(
            lambda a: np.asarray(a, dtype), (images, trained(model, dataset))
        )
        self.params, self.state = start[0], jax.jit(model.statistics)(*start, images)
        self.problem = sharpness.Problem.of(model, self.state)
        self.data = sharpness.batches((images, labels), batch)

    def __call__(self, measure: Callable[..., sharpness.Measured]) -> sharpness.Measured:
        """One of our measures."""
        key = jax.random.key(1)
        return jax.block_until_ready(measure(self.problem, self.params, key=key, data=self.data))

    def product(self, vector: Any) -> Any:
        """The Hessian's product with a tree like the parameters."""

        @jax.jit
        def products(params, state, stack):
            problem = sharpness.Problem(self.problem.predict, extra=(state,))
            loss = lambda params: jax.vmap(problem, (None, 0))(params, stack).mean()
            return jax.jvp(jax.grad(loss), (params,), (vector,))[1]

        return products(self.params, self.state, self.data[0])

    @functools.cached_property
    def exact(self) -> float:
        """The largest eigenvalue, by many products."""
        return float(self(partial(sharpness.largest_eigenvalue, num_steps=EXACT)).value)

    def asked(self, name: str) -> dict[str, Any]:
        """The options with which the other side is as accurate as ours."""
        if name == "dimension":
            return {"steps": 20, "samples": 2, "shift": 1.0}
        if name == "products":
            return {"error": 0.0, "most": PROBES}
        ours = self(OURS[name])
        if name == "trace":
            return {"error": float(ours.error), "most": MOST}
        off = abs(float(ours.value) - self.exact) / self.exact
        return {"near": self.exact, "within": max(off, WITHIN), "most": MOST}

    def in_torch(self) -> TorchHessian:
        """The same network and data in PyTorch."""
        arrays = _named(self.params) | _named(self.state)
        return TorchHessian(arrays, *map(np.asarray, self.data[0]))


def trained(model: Model, dataset: Dataset) -> tuple[Any, Any]:
    """The network after some steps of SGD, when a few eigenvalues are much larger than others."""
    tx = optax.sgd(0.05, momentum=0.9)
    params, state = model.init(jax.random.key(0))

    @jax.jit
    def step(params, state, opt_state, x, y):
        x = normalize(x, dataset.mean, dataset.std)

        def loss(params):
            logits, new = model.apply(params, state, x, True)
            return cross_entropy(logits, y), new

        grads, new = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), new, opt_state

    opt_state, rng = tx.init(params), np.random.default_rng(0)
    for _ in range(TRAINING["steps"]):
        rows = rng.choice(len(dataset.train), TRAINING["batch"], replace=False)
        params, state, opt_state = step(params, state, opt_state, *dataset.train[rows])
    return params, state


def main() -> None:
    """Times or compares the two sides, as the command line asks."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench.sharpness",
        description="Time of PyHessian's measures in PyTorch over that of ours.",
    )
    parser.add_argument("--pairs", type=POSITIVE, default=3, help="how often both sides are timed")
    parser.add_argument("--examples", type=POSITIVE, default=32, help="of the data, all together")
    parser.add_argument(
        "--batch", type=POSITIVE, default=32, help="examples that are computed at once"
    )
    parser.add_argument("--measures", nargs="+", default=[*OURS], choices=[*OURS])
    parser.add_argument("--check", action="store_true", help="compare the values instead")
    args = parser.parse_args()
    if args.examples % args.batch:
        parser.error(f"--examples {args.examples}: allowed are multiples of --batch {args.batch}")
    with cli.clean_errors(traceback=False):
        jax.config.update("jax_platforms", "cpu")
        if args.check:
            jax.config.update("jax_enable_x64", True)
            subject = Subject(16, 8, np.float64)
        else:
            subject = Subject(args.examples, args.batch)
        with subject.in_torch() as theirs:
            if args.check:
                check(subject, theirs, args.measures)
            else:
                measure(subject, theirs, args.measures, args.pairs)


def measure(subject: Subject, theirs: TorchHessian, measures: list[str], pairs: int) -> None:
    """Times both sides in turn; prints the table and the figures."""
    columns = ("measure", "side", "seconds", "products", "value", "error")
    table, results = Table(*columns, box=None), {}
    for name in measures:
        sides = {
            "ours": partial(subject, OURS[name]),
            "torch": partial(theirs, _kind(name), **subject.asked(name)),
        }
        values, seconds = {"ours": [sides["ours"]()], "torch": []}, {}  # compiles
        for i in range(1 if name == "trace" else pairs):
            for side in list(sides)[:: 1 if i % 2 == 0 else -1]:
                began = time.perf_counter()
                values[side].append(sides[side]())
                seconds.setdefault(side, []).append(time.perf_counter() - began)
        products = _products(name, values["torch"][-1])
        ratios = [b / a for a, b in zip(seconds["ours"], seconds["torch"], strict=True)]
        results[name] = {
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(r, 3) for r in ratios],
            "seconds": {side: round(statistics.median(s), 3) for side, s in seconds.items()},
            "products": products,
            "value": {
                "ours": float(values["ours"][-1].value),
                "torch": values["torch"][-1]["value"],
            },
            "error": {
                "ours": float(values["ours"][-1].error),
                "torch": values["torch"][-1].get("error"),
            },
        }
    if "eigenvalue" in results:
        of = results["eigenvalue"]["value"]
        results["eigenvalue"]["off"] = {
            side: abs(of[side] - subject.exact) / subject.exact for side in of
        }
    for name, each in results.items():
        for side in ("ours", "torch"):
            of_side = [each[k][side] for k in ("seconds", "products", "value", "error")]
            error = of_side.pop()
            error = "" if error is None else f"{error:.3g}"
            table.add_row(name, side, *map(str, of_side), error)
    Console(soft_wrap=True, highlight=False).print(table)
    result = {"ratio": {name: each["ratio"] for name, each in results.items()}}
    if "products" in results:
        seconds = results["products"]["seconds"]
        result["products_per_second"] = {k: round(PROBES / s, 3) for k, s in seconds.items()}
    labels = subject.data[0][1]
    size = {"examples": labels.size, "batch": labels.shape[1]}
    common.finish("sharpness", **result, measures=results, **size, torch=theirs("version")["value"])


def check(subject: Subject, theirs: TorchHessian, measures: list[str]) -> None:
    """Compares the two sides' values; exit status 1 if they differ."""
    table = Table("what", "ours", "PyTorch", "apart", "allowed", box=None)
    agree, apart = True, {}

    def compare(what, ours, torch, difference, allowed):
        nonlocal agree
        apart[what] = difference
        agree = agree and difference <= allowed
        table.add_row(what, f"{ours:.6g}", f"{torch:.6g}", f"{difference:.1e}", f"{allowed:.1e}")

    leaves, treedef = jax.tree.flatten(subject.params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    draw = lambda key, leaf: jax.random.normal(key, leaf.shape, leaf.dtype)
    vector = treedef.unflatten(map(draw, keys, leaves))
    us, them = _named(subject.product(vector)), theirs.product(_named(vector))
    norm = lambda arrays: math.sqrt(sum(np.square(a, dtype=np.float64).sum() for a in arrays))
    lengths = norm(us.values()), norm(them.values())
    difference = norm(us[k] - them[k] for k in us) / lengths[0]
    compare("product", *lengths, difference, TOLERANCE["product"])
    for name in measures:
        a, b = subject(OURS[name]), theirs(_kind(name), **subject.asked(name))
        ours, torch = float(a.value), b["value"]
        if name in TOLERANCE:
            compare(name, ours, torch, abs(ours - torch) / abs(ours), TOLERANCE[name])
        else:
            error = math.hypot(float(a.error), b["error"])
            compare(name, ours, torch, abs(ours - torch), ERRORS * error)
    Console(soft_wrap=True, highlight=False).print(table)
    common.finish("sharpness --check", agree=agree, apart=apart, torch=theirs("version")["value"])
    if not agree:
        raise SystemExit(1)


def _products(name, theirs) -> dict[str, int]:
    """Products with the Hessian of each side."""
    options = OURS[name].keywords
    samples, steps = options.get("num_samples", 1), options.get("num_steps", 1)
    return {
        "ours": samples + steps if name == "trace" else samples * steps,
        "torch": theirs["products"],
    }


def _kind(name: str) -> str:
    return "trace" if name == "products" else name


def _named(tree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return {name(path): np.asarray(leaf) for path, leaf in leaves}


if __name__ == "__main__":
    main()
