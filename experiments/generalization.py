"""Which measure of sharpness orders models as they generalise:
`python -m experiments.generalization --workdir DIR`.

Trains a grid of small CNNs on a few examples, each until it fits them, measures how sharp the
minimum is with every measure of `jaxdist.sharpness`, and compares the measures' order with that of
the generalisation gap, train accuracy - test accuracy in percentage points, by Kendall's tau.

The protocol is that of Bisla, Wang, Choromanska, Low-pass filtering SGD, AISTATS 2022 (supplement
and released code, READ). Theirs, and kept here: plain SGD with momentum and L2 weight decay, no
augmentation; a model is done once the cross-entropy of all its training examples, in evaluation
mode, is at most 0.01, looked at after each epoch, and those that do not get there in 500 epochs are
discarded; measures on all training examples in balanced coordinates; tau-b of means over seeds; psi
and Psi, tau granulated by hyper-parameter (Jiang et al., 2020), also of means over seeds.

What differs: two-convolution CNNs without normalisation in place of narrow ResNet-18s, so that skip
connections and BatchNorm are not among the hyper-parameters (theirs are those in `GRID`, both, and
three values of each); some hundred to some thousand training examples in place of CIFAR-10's
50,000, the same ones for all models; images with sides over 16 pixels are halved by means of 2 x 2
pixels; no decay of the learning rate; the Hessian's measures are unbiased where the released ones
are not; fewer noise samples and probes (`MEASURED`), with standard errors, drawn from one key for
all models; one chain on all examples for the gradient of local entropy, with its factor gamma.

DIR gets `models.jsonl`, a line a model, from which a run that was cut off goes on, and
`generalization.json`, `.md` and `.png`.
"""

import argparse
import functools
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from experiments import cli
from jaxdist import sharpness
from jaxdist.analysis import granulated_kendall, kendall
from jaxdist.checks import check_integer
from jaxdist.data import Source, normalize
from jaxdist.losses import cross_entropy
from jaxdist.models import Model, cnn
from jaxdist.training import metrics

GRID: dict[str, tuple] = {
    "width": (6, 12),  # channels of the first convolution; the second has twice as many
    "batch_size": (16, 64),
    "momentum": (0.0, 0.5, 0.8),
    "weight_decay": (0.0, 1e-3),
    "learning_rate": (0.02, 0.05),
}
TARGET, EPOCHS = 0.01, 500
MEASURED: dict[str, dict[str, Any]] = {
    "lpf": {"num_samples": 50},
    "epsilon_sharpness": {"tolerance": 1e-3},
    "pac_bayes": {"num_samples": 5, "tolerance": 1e-3},
    "pac_bayes_sigma": {"num_samples": 5, "tolerance": 1e-3},
    "fisher_rao": {},
    "gradient_norm": {},
    "shannon_entropy": {},
    "local_entropy": {"num_samples": 50},
    "local_entropy_gradient": {},
    "largest_eigenvalue": {"num_steps": 20},
    "trace": {"num_samples": 30},
    "frobenius_norm": {"num_samples": 10},
    "effective_dimension": {"num_samples": 3, "num_steps": 20},
}
"""The options of the measures: as many samples as take some seconds a model on two cores."""

HIDDEN = 32  # units of the CNN's dense layer
COLOUR = "momentum"  # the hyper-parameter that the picture shows

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
    parser = argparse.ArgumentParser(
        prog="python -m experiments.generalization",
        description="Measures of sharpness against the generalisation gap of a grid of CNNs.",
    )
    parser.add_argument("--workdir", required=True, type=Path, help="folder for the results")
    parser.add_argument("--data", default="digits", help="a data set, as \"idx(path='...')\"")
    parser.add_argument("--examples", type=int, default=300, help="training examples")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="models per setting")
    args = parser.parse_args(argv)
    with cli.clean_errors(traceback=False):
        try:
            args.workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--workdir {args.workdir}: {error.strerror}") from None
        data = load(args.data, args.examples)
        study = {"data": args.data, "examples": args.examples}
        lines = resume(args.workdir / "models.jsonl", study, data, args.seeds)
    means = over_seeds(lines)
    found = {"study": study, "seeds": args.seeds, **counts(lines), "scores": scores(means)}
    report = table(found)
    metrics.write_json(args.workdir / "generalization.json", found)
    (args.workdir / "generalization.md").write_text(report)
    plot(means, args.workdir / "generalization.png")
    print(f"{report}\n{args.workdir / 'generalization.png'}")


def load(text: str, examples: int) -> Data:
    """The named data set: the same random `examples` of its training part, and its test part."""
    from experiments.components import read_component

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
    for seed in seeds:
        check_integer("--seeds", seed, 0)
    lines = metrics.read(path)
    for line in lines:
        if {key: line.get(key) for key in study} != study:
            kept = {key: line.get(key) for key in study}
            raise ValueError(f"{path} has models of {kept}; these are of {study}: take another")
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    metrics.write_atomically(path, text)  # without a line that was torn off
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
    seconds = f"{line['seconds']:.1f} s + {line['seconds_measuring']:.1f} s"
    if not line["reached"]:
        return f"{setting}: discarded after {line['epochs']} epochs, {seconds}"
    return f"{setting}: {line['epochs']} epochs, gap {line['gap']:.2f}, {seconds}"


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
    for epoch in range(1, EPOCHS + 1):
        order = rng.permutation(len(data.x))
        for start in range(0, len(order) - size + 1, size):  # in a loop of XLA's it would be slow
            rows = order[start : start + size]
            params, velocity = sgd(model, params, velocity, data.x, data.y, rows, rates)
        loss = evaluate(model, params, data.x, data.y)[0]
        if not loss > TARGET:  # NaN too ends it
            break
    return params, epoch


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


def over_seeds(lines: Sequence[Line]) -> dict[str, np.ndarray]:
    """Means over the seeds of the models that got there, a number for each setting left.

    Of each measure there are the mean and, under "NAME error", that of the standard errors; what is
    not finite in one seed is NaN.
    """
    groups: dict[tuple, list[Line]] = {}
    for line in lines:
        if line["reached"]:
            groups.setdefault(name_of(line)[:-1], []).append(line)
    number = lambda value: np.nan if value is None else value
    rows = []
    for group in groups.values():
        row = {name: group[0][name] for name in GRID}
        for name in ("gap", "train_loss", "test_loss"):
            row[name] = np.mean([number(line[name]) for line in group])
        for name in MEASURED:
            pairs = [[number(part) for part in line["measures"][name]] for line in group]
            row[name], row[f"{name} error"] = np.mean(pairs, axis=0)
        rows.append(row)
    names = [*GRID, "gap", "train_loss", "test_loss"]
    names += [f"{name}{end}" for name in MEASURED for end in ("", " error")]
    return {name: np.array([row[name] for row in rows]) for name in names}


def counts(lines: Sequence[Line]) -> dict[str, Any]:
    """How many models there are, which were discarded, and the seconds that all took."""
    discarded = [line for line in lines if not line["reached"]]
    return {
        "models": len(lines),
        "settings": len({name_of(line)[:-1] for line in lines if line["reached"]}),
        "discarded": [{name: line[name] for name in [*GRID, "seed"]} for line in discarded],
        "seconds": sum(line["seconds"] + line["seconds_measuring"] for line in lines),
    }


def scores(means: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """How well each measure orders the settings by their gap, and by their test loss.

    The train loss is among the measures, since it is what the stop leaves to chance. The noise of a
    measure is its mean standard error over its deviation among the settings.
    """
    settings = {name: means[name] for name in GRID}
    found = {}
    for name in [*MEASURED, "train_loss"]:
        values, gap = means[name], means["gap"]
        psi, mean = granulated_kendall(settings, values, gap)
        finite = np.isfinite(values)
        noise = np.nan
        if f"{name} error" in means and finite.sum() > 1 and np.ptp(values[finite]) > 0:
            noise = means[f"{name} error"][finite].mean() / values[finite].std()
        found[name] = {
            "tau": kendall(values, gap),
            "tau_test_loss": kendall(values, means["test_loss"]),
            "Psi": mean,
            "psi": psi,
            "settings": int((finite & np.isfinite(gap)).sum()),
            "noise": noise,
        }
    itself = {name: kendall(means[name], means["gap"]) for name in GRID}
    found["hyper-parameter"] = {"tau": itself}
    return found


def table(found: Mapping[str, Any]) -> str:
    """The scores as Markdown."""
    study, discarded = found["study"], found["discarded"]
    measures = {name: score for name, score in found["scores"].items() if "psi" in score}
    shown = lambda value: "" if np.isnan(value) else f"{value:.3f}"
    heads = ["measure", "tau", "tau, test loss", "Psi", *(f"psi {name}" for name in GRID)]
    rows = [
        f"{found['models']} models on {study['examples']} examples of {study['data'].split('(')[0]}"
        f", {len(found['seeds'])} seeds. {len(discarded)} did not get to a train loss of {TARGET}"
        f" in {EPOCHS} epochs and are discarded; {found['settings']} settings are left.",
        "",
        f"| {' | '.join([*heads, 'noise', 'settings'])} |",
        f"|---{'|---' * (len(heads) + 1)}|",
    ]
    for name, score in sorted(measures.items(), key=lambda item: -np.nan_to_num(item[1]["tau"])):
        cells = [score["tau"], score["tau_test_loss"], score["Psi"], *score["psi"].values()]
        cells = [name, *map(shown, [*cells, score["noise"]]), str(score["settings"])]
        rows.append(f"| {' | '.join(cells)} |")
    itself = [shown(value) for value in found["scores"]["hyper-parameter"]["tau"].values()]
    rows.append(f"| (tau of the gap with the value itself) | | | | {' | '.join(itself)} | | |")
    return "\n".join([*rows, ""])


def plot(means: Mapping[str, np.ndarray], path: Path) -> None:
    """Each measure against the gap, a point for each setting."""
    columns = 4
    figure = Figure(figsize=(14, 3 * -(-len(MEASURED) // columns)), layout="constrained")
    panels = figure.subplots(-(-len(MEASURED) // columns), columns, squeeze=False).ravel()
    for axes, name in zip(panels, MEASURED, strict=False):
        values = means[name]
        for i, value in enumerate(dict.fromkeys(GRID[COLOUR])):
            here = (means[COLOUR] == value) & np.isfinite(values)
            label = f"{COLOUR} {value:g}"
            axes.plot(values[here], means["gap"][here], ".", color=f"C{i}", label=label)
        finite = values[np.isfinite(values)]
        if len(finite) and (finite > 0).all() and finite.max() > 10 * finite.min():
            axes.set_xscale("log")
        axes.set(title=f"{name}: tau {kendall(values, means['gap']):.2f}", ylabel="gap, points")
        axes.grid(alpha=0.3)
    for axes in panels[len(MEASURED) :]:
        axes.remove()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
