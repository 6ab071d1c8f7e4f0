"""Sharpness: `python -m experiments.bench.sharpness [--pairs 3] [--examples 128] [--batch 128]`.

Measures of ResNet-20 on digits of 32 x 32 x 3, in evaluation mode, ours against PyHessian's method
in PyTorch (`torch_hessian`): the same parameters, data and machine, as many threads, float32, in
turn. `ratio`: their seconds over ours, of

    trace        Hutchinson's estimator with 20 probes on both sides, which is the same accuracy;
                 `products_per_second` are of it, each side's preparation included
    eigenvalue   6 products of Lanczos, against power iteration until it changes by 1e-3; `off`
                 says how far each is from our value after 30
    dimension    the effective dimension by 2 x 20 products of Lanczos on both sides

and `product_ratio`, of the products per second. Ours are timed compiled. Where the examples are
several batches, PyHessian differentiates each anew for each product.

`--check` compares the values instead, of two batches of 8 in float64: a product with one vector,
the eigenvalue, and the estimates within their errors.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.bench import common
from experiments.bench.torch_hessian import TorchHessian
from jaxdist import sharpness
from jaxdist.data import digits, normalize
from jaxdist.models import resnet20

PROBES, EXACT = 20, 30
DIMENSION = {"num_steps": 20, "num_samples": 2, "shift": 1.0}
OURS: dict[str, Callable[..., sharpness.Measured]] = {
    "trace": partial(sharpness.trace, num_samples=PROBES),
    "eigenvalue": partial(sharpness.largest_eigenvalue, num_steps=6),
    "dimension": partial(sharpness.effective_dimension, **DIMENSION),
}
THEIRS: dict[str, dict[str, Any]] = {
    "trace": {"tolerance": 0, "most": PROBES},
    "eigenvalue": {"tolerance": 1e-3, "most": 100},
    "dimension": {"steps": 20, "samples": 2, "shift": 1.0},
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
            lambda a: np.asarray(a, dtype), (images, model.init(jax.random.key(0)))
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

    def in_torch(self) -> TorchHessian:
        """The same network and data in PyTorch."""
        arrays = _named(self.params) | _named(self.state)
        return TorchHessian(arrays, *map(np.asarray, self.data[0]))


def main() -> None:
    """Times or compares the two sides, as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench.sharpness",
        description="Time of PyHessian's measures in PyTorch over that of ours.",
    )
    parser.add_argument("--pairs", type=int, default=3, help="how often both sides are timed")
    parser.add_argument("--examples", type=int, default=128, help="of the data, all together")
    parser.add_argument("--batch", type=int, default=128, help="examples that are computed at once")
    parser.add_argument("--measures", nargs="+", default=[*OURS], choices=[*OURS])
    parser.add_argument("--check", action="store_true", help="compare the values instead")
    args = parser.parse_args()
    if args.pairs < 1 or args.batch < 1 or args.examples < 1 or args.examples % args.batch:
        parser.error(
            f"--pairs {args.pairs} --examples {args.examples} --batch {args.batch}: at least 1 "
            f"each, and the batch must divide the examples"
        )
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
    table, found = Table(*columns, box=None), {}
    for name in measures:
        sides = {
            "ours": partial(subject, OURS[name]),
            "torch": partial(theirs, name, **THEIRS[name]),
        }
        values, seconds = {side: [call()] for side, call in sides.items()}, {}  # compiles
        for i in range(pairs):
            for side in list(sides)[:: 1 if i % 2 == 0 else -1]:
                began = time.perf_counter()
                values[side].append(sides[side]())
                seconds.setdefault(side, []).append(time.perf_counter() - began)
        products = _products(name, values["torch"][-1])
        ratios = [b / a for a, b in zip(seconds["ours"], seconds["torch"], strict=True)]
        found[name] = {
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
    if "eigenvalue" in found:
        exact = float(subject(partial(sharpness.largest_eigenvalue, num_steps=EXACT)).value)
        of = found["eigenvalue"]["value"]
        found["eigenvalue"]["off"] = {side: abs(of[side] - exact) / exact for side in of}
    for name, each in found.items():
        for side in ("ours", "torch"):
            of_side = [each[k][side] for k in ("seconds", "products", "value", "error")]
            error = of_side.pop()
            error = "" if error is None else f"{error:.3g}"
            table.add_row(name, side, *map(str, of_side), error)
    Console(soft_wrap=True, highlight=False).print(table)
    result = {"ratio": {name: each["ratio"] for name, each in found.items()}}
    if "trace" in found:
        seconds = found["trace"]["seconds"]
        result["products_per_second"] = {k: round(PROBES / s, 3) for k, s in seconds.items()}
        result["product_ratio"] = found["trace"]["ratio"]
    labels = subject.data[0][1]
    size = {"examples": labels.size, "batch": labels.shape[1]}
    common.finish("sharpness", **result, measures=found, **size, torch=theirs("version")["value"])


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
        a, b = subject(OURS[name]), theirs(name, **THEIRS[name])
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
    ours = options.get("num_samples", 1) * options.get("num_steps", 1)
    return {"ours": ours, "torch": theirs["products"]}


def _named(tree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return {name(path): np.asarray(leaf) for path, leaf in leaves}


if __name__ == "__main__":
    main()
