"""Tasks: what is learned, and by which numbers it is judged.

`TASKS` is the table that the command line, the tests and the docs read:
`factory(model, dataset, **options) -> Task`.
"""

from collections.abc import Callable

from jaxdist.tasks.base import Headline, Task
from jaxdist.tasks.classification import ACCURACY, classification
from jaxdist.tasks.language_model import language_model
from jaxdist.tasks.lnsr import lnsr
from jaxdist.tasks.multi_head import multi_head
from jaxdist.tasks.multi_label import multi_label
from jaxdist.tasks.regression import regression
from jaxdist.tasks.supervised import supervised

TASKS: dict[str, Callable[..., Task]] = {
    "classification": classification,
    "language_model": language_model,
    "lnsr": lnsr,
    "multi_head": multi_head,
    "multi_label": multi_label,
    "regression": regression,
}
"""Tasks by name. What a factory takes of `loss` and `augment` it gets from the configuration."""

__all__ = ["ACCURACY", "TASKS", "Headline", "Task", "supervised", *TASKS]
