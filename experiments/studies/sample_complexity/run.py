"""The test error against the number of training examples, measured and as features predict it.

`python -m experiments.studies.sample_complexity.run --workdir DIR --data "idx(path='FOLDER')"`
trains a network on nested random parts of a training set, and fits
`jaxdist.analysis.fit_dim_delta` to the test errors: a network errs at x with probability min(1, r /
delta), r the distance to the nearest training example in the d leading principal components of the
inputs of its head. The density there is a Gaussian, that of the network trained on half of the
examples.

Training is one worker's SGD with Nesterov momentum 0.9, batches of 128 (all examples if they are
fewer), a cosine from rate 0.03 to 0, no weight decay and no augmentation. `--steps` is what all
examples get; a part has steps in proportion to its size to the power 3/4, so that the smaller it is
the more passes are made. The theory takes the training error to be zero: it is in the table,
which says how far that is so. The same command again goes on where it stopped, and trains nothing
twice. DIR gets `sample_complexity.json`, `.md` and `.png`, and a folder for each network.

Reference: Bisla, Saridena, Choromanska, A theoretical-empirical approach to estimating sample
complexity of DNNs, 2021. The authors' protocol is READ in their source code: parts of 1/32 to all
of the training set, the same ones for all five seeds; SGD with momentum and batches of 128 (on
MNIST with rate 0.1 and weight decay 5e-4); the test error of the epoch in which it is least; the
features of the network trained on half of the examples, for those examples and the test set; PCA of
both together, a Gaussian with diagonal covariance, 1000 test points of the Gaussian of the test
features, ten times; d from 1 to 5, and delta from 100 given values, by the relative error norm.
Different here: other parts with every seed, the error of the last step, the training as above, one
density of training and test features together (theirs is of the training features alone), one draw
of the test points, exact mean distances where they draw 1000, the best delta of all, and
`kind="poisson"` besides theirs, "cube".
"""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxdist
from experiments import cli
from jaxdist import files
from jaxdist.analysis import Density, Fit, fit_dim_delta, gaussian_density, nn_error_curve
from jaxdist.config import Config, build, component, read_component
from jaxdist.data import Dataset, Source, normalize
from jaxdist.models import Model
from jaxdist.training import Run, metrics, train

FRACTIONS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
FEATURES_AT = 0.5  # the fraction whose network gives the features
DIMS = (1, 2, 3, 4, 5)
KINDS = ("cube", "poisson")
CHUNK = 500  # examples at a time

Look = Callable[[Any, Any, Source, np.ndarray], tuple[np.ndarray, float]]


class Errors(NamedTuple):
    """What networks trained on one part of the training set do; the errors are one for each seed.

    Attributes:
        fraction: the part's share of the training set.
        examples: the number of its examples.
        steps: the steps that each network was trained for.
        train_errors: on the part itself.
        test_errors: on the test set.
    """

    fraction: float
    examples: int
    steps: int
    train_errors: list[float]
    test_errors: list[float]


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is not trained yet, fits, and writes the table, the JSON file and the plot."""
    parser = cli.Parser(
        prog="python -m experiments.studies.sample_complexity.run",
        description="The test error against the number of training examples, and its estimate.",
    )
    parser.add_argument("--workdir", required=True, type=cli.path, help="folder for the results")
    parser.add_argument("--data", default="digits", help="\"idx(path='FOLDER')\", of images")
    parser.add_argument("--model", default="lenet5", help="'mlp(widths=(64,))', of images")
    parser.add_argument("--fractions", nargs="+", type=float, default=FRACTIONS, help="parts")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="one network each")
    parser.add_argument("--steps", type=int, default=16_000, help="steps on all examples")
    parser.add_argument("--batch_size", type=int, default=128, help="examples in a step")
    parser.add_argument("--learning_rate", type=float, default=0.03, help="peak of the cosine")
    args = parser.parse_args(argv)
    with cli.clean_errors(traceback=False):
        _check(args)
        cli.start(1)
        errors, densities = measure(args)
        n = [of.examples for of in errors]
        means = [float(np.mean(of.test_errors)) for of in errors]
        fits = {kind: fit_dim_delta(densities, n, means, kind=kind) for kind in KINDS}
        report = table(errors, args.seeds, fits)
        given = ("data", "model", "seeds", "batch_size", "learning_rate")
        as_json = {name: getattr(args, name) for name in given} | {
            "errors": [of._asdict() for of in errors],
            "fits": {kind: fit._asdict() for kind, fit in fits.items()},
        }
        metrics.write_json(args.workdir / "sample_complexity.json", as_json)
        files.write_atomically(args.workdir / "sample_complexity.md", report)
        plot(errors, densities, fits, args.workdir / "sample_complexity.png")
        print(f"\n{report}\n{args.workdir / 'sample_complexity.png'}")


def _check(args: argparse.Namespace) -> None:
    """Refuses what would come out only after some training."""
    args.fractions = sorted(set(args.fractions))
    for fraction in args.fractions:
        if not 0 < fraction <= 1:
            raise ValueError(
                f"--fractions holds {fraction:g}: allowed are numbers above 0, at most 1"
            )
    if FEATURES_AT not in args.fractions or len(args.fractions) < 2:
        raise ValueError(
            f"--fractions={args.fractions}: allowed is {FEATURES_AT}, whose network gives "
            "the features, and at least one more"
        )
    cli.check_seeds(args.seeds)
    args.seeds = sorted(args.seeds)
    if args.steps < 1:
        raise ValueError(f"--steps={args.steps}: allowed are integers from 1")


def measure(args: argparse.Namespace) -> tuple[list[Errors], list[Density]]:
    """Trains on every part with every seed.

    Returns:
        The errors for each part, and the density of the features for each dimension, which are
        those of the first seed.
    """
    data, model = (read_component(f"{slot}={getattr(args, slot)}")[1] for slot in ("data", "model"))
    config = Config(
        rule=component("rule", "average_gradients"),
        data=data,
        model=model,
        workers=1,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        steps=args.steps,
        eval_every=0,
        log_every=100,
        checkpoint_every=1000,
    )
    dataset = data()
    if len(dataset.input_shape) != 3:
        raise ValueError(f"--data={args.data}: allowed are images")
    look = make_look(model(dataset.input_shape, dataset.num_classes), dataset)
    found, densities = [], []
    for fraction in args.fractions:
        num = len(dataset.train)
        runs = [part(dataclasses.replace(config, seed=seed), num, fraction) for seed in args.seeds]
        found.append(Errors(fraction, len(runs[0].shards[0]), runs[0].steps, [], []))
        for run in runs:
            folder = args.workdir / f"fraction_{fraction:g}" / f"seed_{run.seed}"
            test_error = 1 - train(run, folder, progress=False)["test_accuracy"]
            network = restore(run, folder)
            features, train_error = look(*network, dataset.train, run.shards[0])
            found[-1].train_errors.append(train_error)
            found[-1].test_errors.append(test_error)
            print(
                f"{len(features):,} examples, seed {run.seed}, {run.steps:,} steps: training error "
                f"{train_error:.2%}, test error {test_error:.2%}",
                flush=True,
            )
            if fraction == FEATURES_AT and not densities:
                test, _ = look(*network, dataset.test, np.arange(len(dataset.test)))
                both = np.concatenate([features, test])
                densities = [gaussian_density(both, dim, test_features=test) for dim in DIMS]
    return found, densities


def part(config: Config, num: int, fraction: float) -> Run:
    """The run on the first examples of the seed's random order, so that parts are nested.

    Args:
        config: the run on all `num` examples.
        num: size of the training set.
        fraction: the part's share of it.

    Raises:
        ValueError: if no example is left, or a value of `config` is not allowed.
    """
    size = round(fraction * num)
    if size < 1:
        raise ValueError(
            f"--fractions holds {fraction:g}: allowed is what leaves examples; of {num} examples "
            f"that leaves none"
        )
    steps = max(1, round(config.steps * (size / num) ** 0.75))
    batch = min(config.batch_size, size)
    run = build(dataclasses.replace(config, steps=steps, batch_size=batch))
    order = np.random.default_rng(config.seed).permutation(num)
    # The steps again, here where they must not change: the schedule depends on them.
    description = run.description | {"part": {"examples": size, "steps": steps}}
    return dataclasses.replace(run, shards=[np.sort(order[:size])], description=description)


def restore(run: Run, folder: Path) -> tuple[Any, Any]:
    """The parameters and the other variables at the end of a run of one worker."""
    return tuple(jaxdist.load(folder, run).worker(0))


def make_look(model: Model, dataset: Dataset) -> Look:
    """Compiles a look at what a network makes of some examples.

    The inputs of its last layer are the outputs of the same network with the identity for a head.

    Args:
        model: a model of images whose last layer is dense and named "head".
        dataset: tells how the images are normalised.

    Returns:
        `look(params, state, source, rows) -> (features [N, F], error)`: the inputs of the head, and
        the share of the N examples that the network gets wrong.
    """

    @jax.jit
    def forward(params, state, x):
        kernel = params["head"]["kernel"]
        identity = {"kernel": jnp.eye(len(kernel)), "bias": jnp.zeros(len(kernel))}
        x = normalize(x, dataset.mean, dataset.std)
        return model.apply(params | {"head": identity}, state, x, False)[0]

    def look(params, state, source, rows):
        features, labels = [], []
        for some in np.resize(rows, (-(-len(rows) // CHUNK), CHUNK)):  # the last ones are padding
            x, y = source[some]
            features.append(np.asarray(forward(params, state, x)))
            labels.append(y)
        features, labels = (np.concatenate(parts)[: len(rows)] for parts in (features, labels))
        kernel, bias = (np.asarray(params["head"][name]) for name in ("kernel", "bias"))
        guesses = (features @ kernel + bias).argmax(1)
        return features, float((guesses != labels).mean())

    return look


def table(errors: Sequence[Errors], seeds: Sequence[int], fits: Mapping[str, Fit]) -> str:
    """The errors, measured and predicted, and the fits, as Markdown."""
    rows = [
        f"| fraction | examples | steps | train error | test error | {' | '.join(fits)} |",
        f"|---{'|---' * (4 + len(fits))}|",
    ]
    for i, of in enumerate(errors):
        cells = [f"{of.fraction:g}", f"{of.examples:,}", f"{of.steps:,}"]
        cells += [_spread(of.train_errors), _spread(of.test_errors)]
        cells += [f"{fit.curve[i]:.2%}" for fit in fits.values()]
        rows.append(f"| {' | '.join(cells)} |")
    heads = [f"norm for d = {dim}" for dim in DIMS]
    rows += ["", f"| fit | d | delta | relative error norm | {' | '.join(heads)} |"]
    rows.append(f"|---{'|---' * (3 + len(DIMS))}|")
    for kind, fit in fits.items():
        norms = [f"{fit.residuals[dim]:.3g}" for dim in DIMS]
        cells = [kind, str(fit.dim), f"{fit.delta:.4g}", f"{fit.residual:.3g}", *norms]
        rows.append(f"| {' | '.join(cells)} |")
    notes = (
        f"Mean +- standard deviation over seeds {', '.join(map(str, seeds))}. Cube and poisson are",
        "the test errors that the fits give, from the features of the network trained on",
        f"{FEATURES_AT:g} of the examples with seed {seeds[0]}; the training error should be 0.",
    )
    return "\n".join([*rows, "", *notes, ""])


def _spread(values: Sequence[float]) -> str:
    spread = f" +- {np.std(values, ddof=1):.2%}" if len(values) > 1 else ""
    return f"{np.mean(values):.2%}{spread}"


def plot(
    errors: Sequence[Errors], densities: Sequence[Density], fits: Mapping[str, Fit], path: Path
) -> None:
    """The measured errors, their range over the seeds, and the fitted curves up to twice as far."""
    n = np.array([of.examples for of in errors])
    found = np.array([of.test_errors for of in errors])
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    beside = np.abs([found.min(1), found.max(1)] - found.mean(1))
    axes.errorbar(n, found.mean(1), beside, fmt="ko", capsize=3, label="measured")
    grid = np.geomspace(n[0], 2 * n[-1], 100)
    for kind, fit in fits.items():
        _, log_density, samples = next(of for of in densities if of.dim == fit.dim)
        curve = nn_error_curve(log_density, samples, grid, delta=fit.delta, dim=fit.dim, kind=kind)
        label = f"{kind}: d = {fit.dim}, delta = {fit.delta:.3g}, norm {fit.residual:.2g}"
        axes.plot(grid, curve, ls={"cube": "-", "poisson": "--"}[kind], label=label)
    axes.set(xlabel="training examples", ylabel="test error", xscale="log", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    files.write_figure(path, figure)


if __name__ == "__main__":
    main()
