"""Language models: the next token at each place."""

import math

from jaxdist.data import Dataset
from jaxdist.losses import cross_entropy
from jaxdist.losses.output_regularized import check_labels
from jaxdist.models import Model
from jaxdist.tasks.base import Headline, Task
from jaxdist.tasks.supervised import Loss, supervised

PERPLEXITY = Headline("perplexity", "perplexities", higher_is_better=False, loss_unit="nats")


def language_model(model: Model, dataset: Dataset, *, loss: Loss = cross_entropy) -> Task:
    """The next token; reports perplexity, bits per token, accuracy and the cross-entropy.

    Batches are (tokens int `[B, T]`, the tokens after them `[B, T]`).

        perplexity = exp(mean cross-entropy),  bits_per_token = mean cross-entropy / ln 2

    Args:
        model: gives logits `[B, T, K]`.
        dataset: of token sequences.
        loss: `loss(logits, y)`, the mean over the tokens, for training; evaluations report the
            cross-entropy.

    Raises:
        ValueError: by the task, if there are fewer logits than tokens, or not one token y for each
            K of them.

    Example:
        >>> from jaxdist import data, models
        >>> dataset = data.digit_sequences()
        >>> model = models.transformer(dataset.input_shape, dataset.num_classes)
        >>> metrics = language_model(model, dataset).report({"loss": math.log(8)}, 100)
        >>> {name: round(value, 4) for name, value in metrics.items()}
        {'perplexity': 8.0, 'bits_per_token': 3.0, 'loss': 2.0794}
    """

    def training(logits, y):
        check_labels(logits, y, dataset.num_classes)
        return loss(logits, y)

    def measure(logits, y):
        check_labels(logits, y, dataset.num_classes)
        return {"accuracy": (logits.argmax(-1) == y).reshape(len(y), -1).mean(1)}

    def report(means, count):
        nats = float(means["loss"])
        perplexity = math.exp(nats) if nats < 700 else math.inf
        return {"perplexity": perplexity, "bits_per_token": nats / math.log(2), **means}

    return supervised(model, dataset, training, cross_entropy, measure, PERPLEXITY, report=report)
