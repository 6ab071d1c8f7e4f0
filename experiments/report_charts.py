"""What a report draws and tabulates of runs, by what their task is judged by."""

from typing import NamedTuple

from experiments import comparison, panels
from jaxdist.tasks import Headline
from jaxdist.training.plots import DISTANCES

ACROSS = {"step": "step", "bytes_sent": "MB sent, mean of the workers", **panels.CLOCKS}


class Chart(NamedTuple):
    """What is drawn: the title is the unit and, after a comma, what is shown."""

    measure: str
    across: str
    title: str
    log: bool
    scale: int = 1


def charts_of(headline: Headline) -> list[Chart]:
    """The charts of what all runs report."""
    loss = f"loss ({headline.loss_unit})" if headline.loss_unit else "loss"
    score = headline.title + (f" ({headline.unit})" if headline.unit else "")
    test, scale = headline.test, headline.scale
    of = ", over the workers"
    return [
        Chart("mean_loss", "step", f"{loss}, training, since the last line{of}", True),
        Chart("loss", "step", f"{loss}, training, of one step{of}", True),
        Chart("test_loss", "step", f"{loss}, test, mean of the workers' models", True),
        Chart(test, "step", f"{score}, mean of the workers' models", False, scale),
        Chart(headline.workers, "step", f"{score}, workers alone, over the workers", False, scale),
        Chart(headline.center, "step", f"{score}, model at the rule's centre", False, scale),
        *(Chart(test, across, score, False, scale) for across in list(ACROSS)[1:]),
        *(
            Chart(name, "step", f"consensus distance, {where}", True)
            for name, where in DISTANCES.items()
        ),
        Chart("steps_per_second", "step", "steps per second", False),
    ]


def columns_of(headline: Headline) -> dict[str, tuple[str, float, str]]:
    """What the tables show, in what unit."""
    test, mean, worst, center, *_ = comparison.measures(headline)
    form = headline.scale, headline.unit
    return {
        headline.title: (test, *form),
        "mean worker": (mean, *form),
        "worst worker": (worst, *form),
        "at the centre": (center, *form),
        "test loss": ("test_loss", 1, ""),
        "consensus distance before a sync": ("consensus_before_sync", 1, ""),
        "consensus distance at the end": ("consensus_distance", 1, ""),
        "MB sent": ("bytes_sent_per_worker", 1e-6, ""),
        "training seconds": ("train_seconds", 1, ""),
        "virtual seconds": ("virtual_seconds", 1, ""),
    }


NOTE = (
    "{title} and test loss are of the mean of the workers' models, mean and worst worker of their "
    "own, at the last evaluation. MB sent are those of one worker, on average over the workers. "
    "Training seconds are without compiling, evaluating and saving."
)
