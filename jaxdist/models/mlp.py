"""The multilayer perceptron."""

import math

import jax
from flax import nnx

from jaxdist.models import checks, layers
from jaxdist.models.functional import Model, functional


class MLP(layers.Chain):
    """Dense layers with ReLU and dropout between them, on flattened inputs."""

    def __init__(self, features, num_classes, widths, dropout, rngs):
        sizes = (features, *widths)
        self.hidden = nnx.List(
            [layers.dense(a, b, rngs) for a, b in zip(sizes, widths, strict=False)]
        )
        self.dropout = layers.dropout(dropout, rngs)
        self.head = layers.head(sizes[-1], num_classes, rngs)

    def chain(self):
        def of(layer):
            return lambda x: self.dropout(jax.nn.relu(layer(layers.flatten(x))))

        hidden = {f"hidden_{i}": of(layer) for i, layer in enumerate(self.hidden)}
        return hidden | {"head": lambda x: self.head(layers.flatten(x))}


def mlp(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    widths: tuple[int, ...] = (128, 128),
    dropout: float = 0.0,
) -> Model:
    """A multilayer perceptron: flatten, (dense, ReLU, dropout) per hidden layer, dense.

    Hidden layers start He normal, the last one LeCun normal, biases at zero.

    Args:
        input_shape: shape of one example, any rank.
        num_classes: number of outputs, at least 1.
        widths: units of each hidden layer; empty makes it logistic regression.
        dropout: probability of dropping a hidden unit in training, in [0, 1).

    Returns:
        The `Model`: x [B, *input_shape] to logits [B, num_classes].

    Raises:
        ValueError: for a size below 1, or a rate outside [0, 1).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = mlp((8, 8, 1), 10, widths=(32,))
        >>> params, state = model.init(jax.random.key(0))
        >>> model.apply(params, state, jnp.ones((4, 8, 8, 1)), train=False)[0].shape
        (4, 10)
    """
    checks.integers("input_shape", input_shape)
    checks.integer("num_classes", num_classes, 1)
    checks.integers("widths", widths)
    checks.rate("dropout", dropout)
    return functional(
        lambda rngs: MLP(math.prod(input_shape), num_classes, tuple(widths), dropout, rngs)
    )
