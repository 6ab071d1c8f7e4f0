"""Attacks against robust aggregates: `python -m experiments.studies.bad_workers.run --workdir DIR`.

Local SGD of period 8 on the bundled digits with IID shards (`--config digits --rule local_sgd`): 8
workers, the last 2 bad, with each attack and each aggregate in the place of the mean. The accuracy
is that of the aggregate after the last sync. DIR gets `bad_workers.json` and `.md`, and a folder
for each run; the same command again goes on where it stopped.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from experiments import cli, configs
from jaxdist import files
from jaxdist.config import build, read_component
from jaxdist.training import metrics, train

ATTACKS = (
    "none",
    "sign_flip(scale=4.0)",
    "noise(scale=1.0)",
    "little(scale=1.5)",
    "label_flip",
    "nan",
)
AGGREGATES = (
    None,
    "median",
    "trimmed_mean(trim=2)",
    "geometric_median",
    "centered_clipping(radius=1.0)",
    "krum(bad=2)",
    "multi_krum(bad=2)",
)

Found = Mapping[str, Mapping[str, list[float]]]


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is not trained yet, and writes the table."""
    parser = cli.Parser(
        prog="python -m experiments.studies.bad_workers.run",
        description="Test accuracy with 2 bad workers of 8, of each attack and each aggregate.",
    )
    parser.add_argument("--workdir", required=True, type=cli.path, help="folder for the results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a run each")
    parser.add_argument("--attacks", nargs="+", default=ATTACKS, help="as 'noise(scale=1.0)'")
    parser.add_argument("--steps", type=int, help="steps of each run, in place of the config's")
    args = parser.parse_args(argv)
    with cli.clean_errors(traceback=False):
        cli.check_seeds(args.seeds)
        chosen = {attack: dict([read_component(f"attack={attack}")]) for attack in args.attacks}
        config = configs.load("digits", "local_sgd")
        cli.start(config.devices)
        found: dict[str, dict[str, list[float]]] = {}
        for attack, part in chosen.items():
            for aggregate in AGGREGATES:
                rule = dataclasses.replace(config.rule, aggregate=aggregate)
                name = aggregate or "mean"
                for seed in args.seeds:
                    run = dataclasses.replace(
                        config, **part, rule=rule, seed=seed, steps=args.steps
                    )
                    folder = args.workdir / attack / name / f"seed_{seed}"
                    summary = train(build(run), folder, progress=False)
                    accuracy = summary["test_accuracy"]
                    print(f"{attack:22} {name:30} {seed} {accuracy:.4f}", flush=True)
                    found.setdefault(attack, {}).setdefault(name, []).append(accuracy)
        metrics.write_json(args.workdir / "bad_workers.json", found)
        files.write_atomically(args.workdir / "bad_workers.md", text := table(found))
        print(f"\n{text}")


def table(found: Found) -> str:
    """The accuracies in percent, mean +- deviation over the seeds, as Markdown."""

    def shown(values: Sequence[float]) -> str:
        values = 100 * np.array(values, float)  # null is NaN
        spread = f" +- {values.std(ddof=1):.1f}" if len(values) > 1 else ""
        return f"{values.mean():.1f}{spread}"

    attacks = list(found)
    rows = [["aggregate", *attacks], ["---"] * (1 + len(attacks))]
    for name in found[attacks[0]]:
        rows.append([f"`{name}`", *(shown(found[attack][name]) for attack in attacks)])
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), ""])


if __name__ == "__main__":
    main()
