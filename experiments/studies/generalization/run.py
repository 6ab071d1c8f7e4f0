"""Sharpness against generalisation.

`python -m experiments.studies.generalization.run --workdir DIR` trains a grid of small CNNs
on a few examples, each until it fits them, measures how sharp the minimum is with every measure of
`jaxdist.sharpness`, and compares the measures' order with that of the generalisation gap, train
accuracy - test accuracy in percentage points, by Kendall's tau.

The protocol is that of Bisla, Wang, Choromanska, Low-pass filtering SGD, AISTATS 2022 (supplement
and released code, READ). Theirs, and kept here: plain SGD with momentum and L2 weight decay, no
augmentation; a model is done once the cross-entropy of all its training examples, in evaluation
mode, is at most 0.01, and those that do not get there are discarded; measures on all training
examples in balanced coordinates; tau-b of means over seeds; psi and Psi, tau granulated by
hyper-parameter (Jiang et al., 2020), here of means over seeds too.

What differs: two-convolution CNNs without normalisation in place of narrow ResNet-18s, so that skip
connections and BatchNorm are not among the hyper-parameters (theirs are those two and the ones in
`GRID`, with three values of each); up to 1,000 epochs in place of 500, with no decay of the rate;
some hundred or thousand training examples, the same for all models, in place of CIFAR-10's 50,000;
images with sides over 16 pixels are halved by means of 2 x 2 pixels; the Hessian's measures are
unbiased where the released ones are not; fewer noise samples and probes (`MEASURED`), drawn from
one key for all models, with standard errors; the gradient of local entropy has its factor gamma,
and one chain on all examples.

DIR gets `models.jsonl`, a line a model, from which a run that was cut off goes on, and
`generalization.json`, `.md` and `.png`.
"""

import functools
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import cli
from jaxdist import files, sharpness
from jaxdist.data import Source, normalize
from jaxdist.losses import cross_entropy
from jaxdist.models import Model, cnn
from jaxdist.training import metrics

GRID: dict[str, tuple] = {
    "width": (6, 12),  # channels of the first convolution; the second has twice as many
    "batch_size": (16, 64),
    "momentum": (0.0, 0.5, 0.8),
    "weight_decay": (0.0, 1e-3),
    "learning_rate": (0.02, 0.04),
}
TARGET, EPOCHS = 0.01, 1000
MEASURED: dict[str, dict[str, Any]] = {
    "lpf": {"num_samples": 50},
    "epsilon_sharpness": {"tolerance": 1e-3},
    "pac_bayes": {"num_samples": 10, "tolerance": 5e-3},
    "pac_bayes_sigma": {"num_samples": 10, "tolerance": 5e-3},
    "fisher_rao": {},
    "gradient_norm": {},
    "shannon_entropy": {},
    "local_entropy": {"num_samples": 50},
    "local_entropy_gradient": {},
    "largest_eigenvalue": {"num_steps": 20},
    "trace": {"num_samples": 30},
    "frobenius_norm": {"num_samples": 10},
    "effective_dimension": {"num_samples": 4, "num_steps": 20},
}
"""The options of the measures: as many samples as take some seconds a model on two cores."""

HIDDEN = 32  # units of the CNN's dense layer

Line = dict[str, Any]


class Data(NamedTuple):
    """Normalised images `[n, H, W, C]` and classes `[n]` for training and testing, and K."""

    x: jax.Array
    y: jax.Array
    test_x: jax.Array
    test_y: jax.Array
    num_classes: int


def main(argv: Sequence[str] | None = None) -> None:
    """Trains and measures what is not done yet, and writes the tables and the plot."""
    parser = cli.Parser(
        prog="python -m experiments.studies.generalization.run",
        description="Measures of sharpness against the generalisation gap of a grid of CNNs.",
    )
    parser.add_argument("--workdir", required=True, type=cli.path, help="folder for the results")
    parser.add_argument("--data", default="digits", help="a data set, as \"idx(path='...')\"")
    parser.add_argument("--examples", type=int, default=300, help="training examples")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="models per setting")
    args = parser.parse_args(argv)
    with cli.clean_errors(traceback=False):
        try:
            args.workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--workdir {args.workdir}: {error.strerror}") from None
        cli.check_devices()
        data = load(args.data, args.examples)
        study = {"data": args.data, "examples": args.examples}
        lines = resume(args.workdir / "models.jsonl", study, data, args.seeds)

    from experiments.studies.generalization import report

    print(report.write(args.workdir, study | {"seeds": args.seeds}, lines))


def load(text: str, examples: int) -> Data:
    """The named data set: the same random `examples` of its training part, and its test part."""
    from jaxdist.config import read_component

    dataset = read_component(f"data={text}")[1]()
    if len(dataset.input_shape) != 3:
        raise ValueError(f"--data is {text}; it must be images, whose shape is (H, W, C)")
    least = max(GRID["batch_size"])
    if not least <= examples <= len(dataset.train):
        raise ValueError(
            f"--examples is {examples}; it must be in [{least}, {len(dataset.train)}], from the "
            "largest batch to all"
        )

    def prepare(source: Source, rows: np.ndarray) -> tuple[jax.Array, jax.Array]:
        x, y = source[rows]
        x = normalize(jnp.asarray(x), dataset.mean, dataset.std)
        if min(x.shape[1:3]) > 16:
            height, width = x.shape[1] // 2, x.shape[2] // 2
            x = x[:, : 2 * height, : 2 * width]
            x = x.reshape(len(x), height, 2, width, 2, -1).mean((2, 4))
        return x, jnp.asarray(y)

    rows = np.random.default_rng(0).choice(len(dataset.train), examples, replace=False)
    train, test = prepare(dataset.train, rows), prepare(dataset.test, np.arange(len(dataset.test)))
    return Data(*train, *test, dataset.num_classes)


def resume(path: Path, study: Line, data: Data, seeds: Sequence[int]) -> list[Line]:
    """A line for each model of the grid: those in the file, and the others, which are made now."""
    cli.check_seeds(seeds)
    lines = metrics.read(path)
    for line in lines:
        if {key: line.get(key) for key in study} != study:
            kept = {key: line.get(key) for key in study}
            raise ValueError(f"{path} has models of {kept}; these are of {study}: take another")
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    files.write_atomically(path, text)  # without a line that was torn off
    done = {name_of(line): line for line in lines}
    wanted = [
        dict(zip(GRID, values, strict=True)) | {"seed": seed}
        for seed in dict.fromkeys(seeds)
        for values in itertools.product(*GRID.values())
    ]
    with path.open("a") as file:
        for i, setting in enumerate(wanted, 1):
            if name_of(setting) not in done:
                line = metrics.plain(study | setting | examine(setting, data))
                file.write(f"{json.dumps(line, allow_nan=False)}\n")
                file.flush()
                done[name_of(setting)] = line
                print(f"{i}/{len(wanted)} {said(line)}", flush=True)
    return [done[name_of(setting)] for setting in wanted]


def name_of(setting: Line) -> tuple:
    """What tells a model from the others."""
    return *(setting[name] for name in GRID), setting["seed"]


def said(line: Line) -> str:
    """A line for whoever waits."""
    setting = " ".join(f"{name}={line[name]:g}" for name in [*GRID, "seed"])
    became = f"gap {line['gap']:.2f}" if line["reached"] else "discarded"
    seconds = f"{line['seconds']:.1f} s + {line['seconds_measuring']:.1f} s"
    return f"{setting}: {line['epochs']} epochs, {became}, {seconds}"


def examine(setting: Line, data: Data) -> Line:
    """Trains a model and, if it gets to the target, measures it."""
    began = time.perf_counter()
    model = network(setting["width"], data.x.shape[1:], data.num_classes)
    params, epochs = train(model, setting, data)
    loss, accuracy = map(float, evaluate(model, params, data.x, data.y))
    test_loss, test_accuracy = map(float, evaluate(model, params, data.test_x, data.test_y))
    trained = time.perf_counter()
    reached = loss <= TARGET
    return {
        "epochs": epochs,
        "reached": reached,
        "train_loss": loss,
        "train_accuracy": accuracy,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "gap": 100 * (accuracy - test_accuracy),
        "measures": measure(model, params, data) if reached else {},
        "seconds": trained - began,
        "seconds_measuring": time.perf_counter() - trained,
    }


@functools.cache
def network(width: int, input_shape: tuple[int, ...], num_classes: int) -> Model:
    """One model for each shape, so that each is compiled once."""
    return cnn(input_shape, num_classes, features=(width, 2 * width), hidden=HIDDEN)


def train(model: Model, setting: Line, data: Data) -> tuple[optax.Params, int]:
    """Parameters that reach the target, or those after the last epoch; and the epochs."""
    rng = np.random.default_rng(setting["seed"])
    params, _ = model.init(jax.random.key(setting["seed"]))
    velocity = jax.tree.map(jnp.zeros_like, params)
    rates = {key: setting[key] for key in ("learning_rate", "momentum", "weight_decay")}
    size = setting["batch_size"]
    epochs, loss = 0, np.inf
    while loss > TARGET and epochs < EPOCHS:  # NaN too ends it
        order = rng.permutation(len(data.x))
        for start in range(0, len(order) - size + 1, size):  # in a loop of XLA's it would be slow
            rows = order[start : start + size]
            params, velocity = sgd(model, params, velocity, data.x, data.y, rows, rates)
        loss = evaluate(model, params, data.x, data.y)[0]
        epochs += 1
    return params, epochs


@functools.partial(jax.jit, static_argnums=0)
def sgd(model, params, velocity, x, y, rows, rates):
    """A step of SGD on the examples `rows`; the rates are arguments, so that it compiles once."""
    of = lambda params: cross_entropy(model.apply(params, {}, x[rows], True)[0], y[rows])
    decayed = lambda v, g, p: rates["momentum"] * v + g + rates["weight_decay"] * p
    velocity = jax.tree.map(decayed, velocity, jax.grad(of)(params), params)
    return jax.tree.map(lambda p, v: p - rates["learning_rate"] * v, params, velocity), velocity


@functools.partial(jax.jit, static_argnums=0)
def evaluate(model, params, x, y):
    """The mean cross-entropy and the accuracy."""
    logits = model.apply(params, {}, x, False)[0]
    return cross_entropy(logits, y), (logits.argmax(-1) == y).mean()


def measure(model: Model, params: optax.Params, data: Data) -> dict[str, list[float | None]]:
    """Each measure's value and standard error (None where nothing is estimated)."""
    problem = sharpness.Problem.of(model, {})
    batch = sharpness.batches((data.x, data.y), len(data.x))
    found = {}
    for name, options in MEASURED.items():
        options = {"key": jax.random.key(0), "data": batch, "balanced": True} | options
        measured = sharpness.MEASURES[name](problem, params, **options)
        found[name] = [None if part is None else float(part) for part in measured]
    return found


if __name__ == "__main__":
    main()
