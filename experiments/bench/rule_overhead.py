"""What a rule costs: `python -m experiments.bench.rule_overhead [--rounds 9] [--rules ...]`.

Step time of the CNN with each rule over the step with no rule, on average over a period of 8 steps
(`ratios`), and on local steps alone (`local_ratios`).
"""

import argparse

from rich.console import Console
from rich.table import Table

from experiments.arguments import POSITIVE
from experiments.bench import common
from jaxdist.workers import force_host_devices

NEVER = 1_000_000


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=POSITIVE, default=9)
    parser.add_argument(
        "--rules", nargs="+", choices=common.RULES, default=list(common.RULES), metavar="RULE"
    )
    args = parser.parse_args()
    force_host_devices(common.WORKERS)
    baseline = common.Stepper(common.cnn_run("none"))
    table = Table("rule", "over no rule, period 8", "over no rule, local steps")
    ratios, local_ratios = {}, {}
    for rule in args.rules:
        hyper = common.RULES[rule]
        sides = {"none": baseline, "rule": common.Stepper(common.cnn_run(rule, **hyper))}
        if "period" in hyper:
            sides["local"] = common.Stepper(common.cnn_run(rule, **hyper | {"period": NEVER}))
        taken = common.interleave(sides, 2 * common.PERIOD, args.rounds)
        ratios[rule] = round(common.ratio(taken["rule"], taken["none"]), 4)
        if "local" in taken:
            local_ratios[rule] = round(common.ratio(taken["local"], taken["none"]), 4)
        table.add_row(rule, f"{ratios[rule]:.3f}", str(local_ratios.get(rule, "-")))
    Console().print(table)
    common.finish("rule_overhead", ratios=ratios, local_ratios=local_ratios)


if __name__ == "__main__":
    main()
