"""Hyper-parameters of each rule on a data set: what `--rule NAME` begins with, before other flags.

They are ours where no source stands with them. A rule that is not listed has its defaults.
"""

from collections.abc import Mapping
from typing import Any

Settings = Mapping[str, Mapping[str, Any]]


def eight_workers() -> Settings:
    """8 workers and some hundred steps."""
    return {
        "post_local_sgd": {"period": 8, "after": 100},
        "hierarchical_sgd": {"periods": {2: 2, 8: 8}},
        "easgd": {"period": 4},
        "eamsgd": {"period": 4, "momentum": 0.9},
        "lsgd": {"period": 4},
        "mgrawa": {"period": 8},
        "lgrawa": {"period": 8},
        "dppf": {"period": 8, "pull": 0.5, "push": 0.05},
        # the outer optimizers' rates and momenta are those of the code read, see the rules
        "diloco": {"period": 16},
        "slowmo": {"period": 16},
        "decoupled": {"period": 16, "arrived": straggler(8), "quorum": 4},
        "streaming_diloco": {"period": 16, "fragments": 4, "delay": 2},
        "lasgd": {"period": 8, "delay": 4},
        "dasgd": {"period": 8, "delay": 4},
        "matcha": {"topology": "al_dsgd(graph=1)"},
        # with the default momentum, 0.9, the workers drift apart, see "The digits" in RESULTS.md
        "noloco": {"period": 8, "momentum": 0.5},
        "choco": {"consensus_step": 0.3},
    }


def four_workers() -> Settings:
    """4 workers on CIFAR-10, after the GRAWA authors' sample script.

    Read there: LSGD's period 4, strength 0.1 and prox 0.1, EASGD's period 4 and alpha 0.1 / W, and
    LGRAWA's values, which are the defaults of the rule and of MGRAWA.
    """
    return {
        "post_local_sgd": {"period": 16, "after": 7760},
        "hierarchical_sgd": {"periods": {4: 2, 16: 4}},
        "easgd": {"period": 4, "alpha": 0.025},
        "eamsgd": {"period": 4, "alpha": 0.225, "momentum": 0.9},  # 0.9 / W, from memory
        "lsgd": {"period": 4, "strength": 0.1, "prox": 0.1},
        "dppf": {"period": 8, "pull": 0.1, "push": 0.01},
        "diloco": {"period": 32},
        "slowmo": {"period": 32},
        "decoupled": {"period": 32, "arrived": straggler(4), "quorum": 2},
        "streaming_diloco": {"period": 32, "fragments": 4, "delay": 4},
        "lasgd": {"period": 8, "delay": 4},
        "dasgd": {"period": 8, "delay": 4},
        "noloco": {"period": 50, "momentum": 0.5},
        "choco": {"consensus_step": 0.3},
        "al_dsgd": {"topologies": "ring, complete"},  # the authors' graphs have 8 nodes
    }


def on_a_graph() -> Settings:
    """8 workers on CIFAR-10, after the AL-DSGD authors' code; other rules as `eight_workers`.

    Read there: the graphs, MATCHA's budget, and the form and the coefficients of AL-DSGD.
    """
    graph = "al_dsgd(graph=1)"
    return eight_workers() | {
        "dpsgd": {"topology": graph},
        "gossip_pga": {"topology": graph},
        "matcha": {"topology": graph},
        "al_dsgd": {
            "variant": "released",
            "leader_pull": 0.2,
            "degree_pull": 0.2,
        },
        "noloco": {"period": 50, "momentum": 0.5},
        "choco": {"topology": graph, "consensus_step": 0.3},
    }


def straggler(workers: int) -> list[list[bool]]:
    """Who arrives at Decoupled DiLoCo's syncs: the last worker at every third one only."""
    return [[True] * (workers - 1) + [sync == 2] for sync in range(3)]
