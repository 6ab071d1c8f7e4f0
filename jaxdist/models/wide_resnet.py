"""Wide residual networks."""

import jax
from flax import nnx

from jaxdist.models import checks, layers
from jaxdist.models.functional import Model, functional
from jaxdist.models.isqrt_cov import check_pooling, pooling


class WideBlock(nnx.Module):
    """BatchNorm, ReLU, conv, BatchNorm, ReLU, dropout, conv, plus x or its projection."""

    def __init__(self, features_in, features, stride, dropout, rngs):
        self.norm1 = layers.batch_norm(features_in, rngs)
        self.conv1 = layers.conv(features_in, features, 3, rngs, stride=stride)
        self.norm2 = layers.batch_norm(features, rngs)
        self.dropout = layers.dropout(dropout, rngs)
        self.conv2 = layers.conv(features, features, 3, rngs)
        self.projection = (
            None
            if features_in == features and stride == 1
            else layers.conv(features_in, features, 1, rngs, stride=stride)
        )

    def __call__(self, x):
        activated = jax.nn.relu(self.norm1(x))
        y = jax.nn.relu(self.norm2(self.conv1(activated)))
        y = self.conv2(self.dropout(y))
        return y + (x if self.projection is None else self.projection(activated))


class WideResNet(layers.Chain):
    """A convolution, 3 stages of pre-activated blocks, BatchNorm, ReLU, pooling, dense head."""

    def __init__(self, channels, num_classes, depth, width, dropout, isqrt_cov, rngs):
        self.stem = layers.conv(channels, 16, 3, rngs)
        blocks, features_in = [], 16
        for stage in range(3):
            for i in range((depth - 4) // 6):
                features = 16 * width * 2**stage
                stride = 2 if stage and not i else 1
                blocks.append(WideBlock(features_in, features, stride, dropout, rngs))
                features_in = features
        self.blocks = nnx.List(blocks)
        self.norm = layers.batch_norm(features_in, rngs)
        self.pool, features = pooling(features_in, isqrt_cov, rngs)
        self.head = layers.head(features, num_classes, rngs)

    def chain(self):
        blocks = {f"block_{i}": block for i, block in enumerate(self.blocks)}
        end = lambda x: self.head(self.pool(jax.nn.relu(self.norm(x))))
        return {"stem": self.stem} | blocks | {"head": end}


def wide_resnet(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    depth: int = 28,
    width: int = 10,
    dropout: float = 0.0,
    isqrt_cov: int | None = None,
) -> Model:
    """WRN-depth-width for small images, He normal; WRN-28-10 has 36,479,194 parameters on CIFAR-10.

    Args:
        input_shape: (height, width, channels) of one image.
        num_classes: number of classes, at least 2.
        depth: number of convolutions on the longest path, of the form 6 n + 4: 10, 16, 22, 28, 40.
        width: the stages have 16, 32 and 64 times as many channels.
        dropout: probability of dropping a value between a block's convolutions, in [0, 1).
        isqrt_cov: pools by iSQRT-COV (see `ISqrtCov`) of so many channels; None: by the mean.

    Returns:
        The `Model`: x [B, H, W, C] to logits [B, num_classes].

    Raises:
        ValueError: for a bad shape, fewer than 2 classes, a depth not of the form 6 n + 4, a size
            below 1, or a rate outside [0, 1).

    Example:
        >>> import jax
        >>> params, _ = jax.eval_shape(wide_resnet((32, 32, 3), 10).init, jax.random.key(0))
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        36479194

    Reference: Zagoruyko, Komodakis, Wide residual networks, 2016, table 1 and figure 1(d).
    RECONSTRUCTED.
    """
    checks.image(input_shape)
    checks.integer("num_classes", num_classes, 2)
    checks.integer("depth", depth, 10)
    if depth % 6 != 4:
        checks.reject("depth", depth, "those of the form 6 n + 4: 10, 16, 22, 28, 40, ...")
    checks.integer("width", width)
    checks.rate("dropout", dropout)
    check_pooling(isqrt_cov)
    return functional(
        lambda rngs: WideResNet(input_shape[2], num_classes, depth, width, dropout, isqrt_cov, rngs)
    )
