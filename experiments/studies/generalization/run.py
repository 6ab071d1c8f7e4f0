"""Sharpness against generalisation.

`python -m experiments.studies.generalization.run --workdir DIR` trains a grid of small CNNs
on a few examples, each until it fits them, measures how sharp the minimum is with every measure of
`jaxdist.sharpness`, and compares the measures' order with that of the generalisation gap, train
accuracy - test accuracy in percentage points, by Kendall's tau.

The protocol is that of Bisla, Wang, Choromanska, Low-pass filtering SGD, AISTATS 2022 (supplement
and released code, READ). Theirs, and kept here: plain SGD with momentum and L2 weight decay, no
augmentation; a model is done once the cross-entropy of all its training examples, in evaluation
mode, is at most 0.01 after an epoch, and those that do not get there are discarded; measures on all
training examples in balanced coordinates; tau-b of means over seeds; psi and Psi, tau granulated by
hyper-parameter (Jiang et al., 2020), here of means over seeds too.

What differs: two-convolution CNNs without normalisation in place of narrow ResNet-18s, so that skip
connections and BatchNorm are not among the hyper-parameters (theirs are those two and the ones in
`GRID`, with three values of each); up to 1,000 epochs in place of 500, with no decay of the rate;
some hundred or thousand training examples, the same for all models, in place of CIFAR-10's 50,000;
images with sides over 16 pixels are halved by means of 2 x 2 pixels; the Hessian's measures are
unbiased where the released ones are not; fewer noise samples and probes (`MEASURED`), drawn from
one key for all models, with standard errors; the gradient of local entropy has its factor gamma,
and one chain on all examples.

Each model is a run of `jaxdist.training`, of one worker, whose evaluations are on its training
examples and end it. Each is compiled anew, which takes some seconds. DIR gets `models.jsonl`, a
line a model, from which a study that was cut off goes on, and `generalization.json`, `.md` and
`.png`.
"""

import functools
import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import cli
from jaxdist import Workers, files, rules, sharpness, training
from jaxdist.data import Dataset, Source, TreeSource, normalize
from jaxdist.losses import cross_entropy
from jaxdist.models import Model, cnn
from jaxdist.tasks import classification
from jaxdist.training import Run, metrics
from jaxdist.training.targets import Target
from jaxdist.training.ways import EveryStep

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

    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    num_classes: int

    @property
    def fitting(self) -> Dataset:
        """The training examples, which evaluations are on as well."""
        train = TreeSource((self.x, self.y))
        return Dataset(train, train, self.x.shape[1:], self.num_classes)


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
        raise ValueError(f"--data={text}: allowed are images, whose shape is (H, W, C)")
    least = max(GRID["batch_size"])
    if not least <= examples <= len(dataset.train):
        raise ValueError(
            f"--examples={examples}: allowed are integers in [{least}, {len(dataset.train)}], from "
            "the largest batch to all"
        )

    def prepare(source: Source, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, y = source[rows]
        x = normalize(jnp.asarray(x), dataset.mean, dataset.std)
        if min(x.shape[1:3]) > 16:
            height, width = x.shape[1] // 2, x.shape[2] // 2
            x = x[:, : 2 * height, : 2 * width]
            x = x.reshape(len(x), height, 2, width, 2, -1).mean((2, 4))
        return np.asarray(x), y

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
    run = run_of(model, setting, data)
    with tempfile.TemporaryDirectory() as folder:
        summary = training.train(run, folder, progress=False)
        params = training.load(folder, run).mean.params
    accuracy = summary["test_accuracy"]  # of the run's own evaluations, on the training examples
    test_loss, test_accuracy = map(float, evaluate(model, params, data.test_x, data.test_y))
    trained = time.perf_counter()
    reached = "until" in summary
    return {
        "epochs": summary["steps"] // run.sampler.steps_per_epoch,
        "reached": reached,
        "train_loss": summary["test_loss"],
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
    """One model for each shape, so that what measures it is compiled once."""
    return cnn(input_shape, num_classes, features=(width, 2 * width), hidden=HIDDEN)


def run_of(model: Model, setting: Line, data: Data) -> Run:
    """The run of a model of the grid: until it is at the target, or the last epoch."""
    dataset, batch = data.fitting, setting["batch_size"]
    workers = Workers.create(1, devices=jax.devices()[:1])
    decay = optax.add_decayed_weights(setting["weight_decay"])
    sgd = optax.sgd(setting["learning_rate"], momentum=setting["momentum"])
    per_epoch = len(data.x) // batch
    return Run(
        workers=workers,
        task=classification(model, dataset),
        dataset=dataset,
        tx=rules.compose(optax.chain(decay, sgd), "average_gradients", workers.axis),
        rule="average_gradients",
        way=EveryStep(),
        shards=[np.arange(len(data.x))],
        batch_size=batch,
        steps=EPOCHS * per_epoch,
        seed=setting["seed"],
        eval_every=per_epoch,
        log_every=per_epoch,
        checkpoint_every=0,
        until=Target("test_loss", TARGET, rising=False),
    )


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
