"""VGG16 with BatchNorm."""

import jax
from flax import nnx

from jaxdist.models import checks, layers
from jaxdist.models.functional import Model, functional

STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # (channels in widths, convolutions) per stage


class VGG16(layers.Chain):
    """13 convolutions of 3 x 3 with BatchNorm in 5 stages, each pooled; then dense layers."""

    def __init__(self, input_shape, num_classes, width, hidden, dropout, rngs):
        height, columns, features = input_shape
        stages = []
        for factor, convolutions in STAGES:
            stage: list[nnx.Module] = []
            for _ in range(convolutions):
                stage.append(layers.conv(features, factor * width, 3, rngs))
                stage.append(layers.batch_norm(factor * width, rngs))
                features = factor * width
            stages.append(nnx.List(stage))
        self.stages = nnx.List(stages)
        sizes = ((height // 32) * (columns // 32) * features, *hidden)
        self.hidden = nnx.List(
            [layers.dense(a, b, rngs) for a, b in zip(sizes, hidden, strict=False)]
        )
        self.dropout = layers.dropout(dropout, rngs)
        self.head = layers.head(sizes[-1], num_classes, rngs)

    def chain(self):
        def of_stage(stage):
            def convolve(x):
                for conv, norm in zip(stage[::2], stage[1::2], strict=True):
                    x = jax.nn.relu(norm(conv(x)))
                return layers.max_pool(x)

            return convolve

        of_hidden = lambda layer: lambda x: self.dropout(jax.nn.relu(layer(x)))
        found = {f"stage_{i}": of_stage(stage) for i, stage in enumerate(self.stages)}
        found["flatten"] = lambda x: self.dropout(layers.flatten(x))
        found |= {f"hidden_{i}": of_hidden(layer) for i, layer in enumerate(self.hidden)}
        return found | {"head": self.head}


def vgg16(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: int = 64,
    hidden: tuple[int, ...] = (),
    dropout: float = 0.0,
) -> Model:
    """VGG16 with BatchNorm, He normal; 14,724,042 parameters on CIFAR-10.

    The convolutions have no bias, since BatchNorm follows them. One dense layer ends the network,
    as is usual for CIFAR; `hidden=(4096, 4096), dropout=0.5` gives the paper's ImageNet head.

    Args:
        input_shape: (height, width, channels) of one image, sides of at least 32 pixels.
        num_classes: number of classes, at least 2.
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        hidden: units of each dense hidden layer before the last.
        dropout: probability of dropping an input of a dense layer in training, in [0, 1).

    Returns:
        The `Model`: x [B, H, W, C] to logits [B, num_classes].

    Raises:
        ValueError: for a bad shape, sides under 32 pixels, fewer than 2 classes, a size below 1,
            or a rate outside [0, 1).

    Example:
        >>> import jax
        >>> params, _ = jax.eval_shape(vgg16((32, 32, 3), 10).init, jax.random.key(0))
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        14724042

    Reference: Simonyan, Zisserman, Very deep convolutional networks for large-scale image
    recognition, 2015, configuration D. RECONSTRUCTED, with BatchNorm added.
    """
    checks.image(input_shape, 32)
    checks.integer("num_classes", num_classes, 2)
    checks.integer("width", width)
    checks.integers("hidden", hidden)
    checks.rate("dropout", dropout)
    return functional(
        lambda rngs: VGG16(input_shape, num_classes, width, tuple(hidden), dropout, rngs)
    )
