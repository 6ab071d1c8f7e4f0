"""Residual networks: ResNet-20 for small images, ResNet-18 and ResNet-50 with either stem."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdist.models import checks, layers
from jaxdist.models.functional import Model, functional
from jaxdist.models.isqrt_cov import check_pooling, pooling

Shortcut = Literal["A", "B"]
Stem = Literal["cifar", "imagenet"]


class Normalized(nnx.Module):
    """A convolution without bias, and its BatchNorm."""

    def __init__(self, features_in, features_out, size, rngs, *, stride=1):
        self.conv = layers.conv(features_in, features_out, size, rngs, stride=stride)
        self.norm = layers.batch_norm(features_out, rngs)

    def __call__(self, x):
        return self.norm(self.conv(x))


class PaddedShortcut(nnx.Module):
    """Option A: every `stride`-th pixel, and zeros for the new channels; no parameters."""

    def __init__(self, features_in, features_out, stride):
        self.stride = stride
        self.new = features_out - features_in

    def __call__(self, x):
        x = x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, [(0, 0)] * 3 + [(0, self.new)])


class Residual(nnx.Module):
    """relu(body(x) + shortcut(x)): a basic block, or a bottleneck 4 times as wide outside."""

    def __init__(self, features_in, features, stride, bottleneck, shortcut, rngs):
        if bottleneck:
            features_out = 4 * features
            self.body = nnx.List(
                [
                    Normalized(features_in, features, 1, rngs),
                    Normalized(features, features, 3, rngs, stride=stride),
                    Normalized(features, features_out, 1, rngs),
                ]
            )
        else:
            features_out = features
            self.body = nnx.List(
                [
                    Normalized(features_in, features, 3, rngs, stride=stride),
                    Normalized(features, features, 3, rngs),
                ]
            )
        if stride == 1 and features_in == features_out:
            self.shortcut: nnx.Module | None = None
        elif shortcut == "A":
            self.shortcut = PaddedShortcut(features_in, features_out, stride)
        else:
            self.shortcut = Normalized(features_in, features_out, 1, rngs, stride=stride)

    def __call__(self, x):
        y = x
        for layer in self.body[:-1]:
            y = jax.nn.relu(layer(y))
        y = self.body[-1](y)
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(layers.Chain):
    """A stem, stages that halve the image and double the channels, pooling, a dense head."""

    def __init__(
        self,
        channels,
        num_classes,
        depths,
        width,
        rngs,
        *,
        stem,
        isqrt_cov,
        shortcut="B",
        bottleneck=False,
    ):
        self.imagenet = stem == "imagenet"
        size, stride = (7, 2) if self.imagenet else (3, 1)
        self.stem = Normalized(channels, width, size, rngs, stride=stride)
        blocks, features_in = [], width
        for stage, depth in enumerate(depths):
            for i in range(depth):
                features = width * 2**stage
                stride = 2 if stage and not i else 1
                blocks.append(Residual(features_in, features, stride, bottleneck, shortcut, rngs))
                features_in = 4 * features if bottleneck else features
        self.blocks = nnx.List(blocks)
        self.pool, features = pooling(features_in, isqrt_cov, rngs)
        self.head = layers.head(features, num_classes, rngs)

    def chain(self):
        blocks = {f"block_{i}": block for i, block in enumerate(self.blocks)}
        return {"stem": self.begin} | blocks | {"head": lambda x: self.head(self.pool(x))}

    def begin(self, x):
        x = jax.nn.relu(self.stem(x))
        if self.imagenet:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return x


def resnet20(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: int = 16,
    shortcut: Shortcut = "A",
    isqrt_cov: int | None = None,
) -> Model:
    """ResNet-20 for small images: 3 stages of 3 basic blocks, 269,722 parameters on CIFAR-10.

    He normal convolutions without bias, each followed by BatchNorm.

    Args:
        input_shape: (height, width, channels) of one image.
        num_classes: number of classes, at least 2.
        width: channels of the first stage; the next ones have twice and four times as many.
        shortcut: between stages, A pads new channels with zeros (the paper's choice), B projects.
        isqrt_cov: pools by iSQRT-COV (see `ISqrtCov`) of so many channels; None: by the mean.

    Returns:
        The `Model`: x [B, H, W, C] to logits [B, num_classes].

    Raises:
        ValueError: for a bad shape, fewer than 2 classes, a size below 1 or an unknown shortcut.

    Example:
        >>> import jax
        >>> params, _ = jax.eval_shape(resnet20((32, 32, 3), 10).init, jax.random.key(0))
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        269722

    Reference: He, Zhang, Ren, Sun, Deep residual learning for image recognition, 2016, section 4.2.
    RECONSTRUCTED.
    """
    checks.choice("shortcut", shortcut, ("A", "B"))
    options = {"stem": "cifar", "shortcut": shortcut, "isqrt_cov": isqrt_cov}
    return _resnet(input_shape, num_classes, (3, 3, 3), width, **options)


def resnet18(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    stem: Stem = "cifar",
    width: int = 64,
    isqrt_cov: int | None = None,
) -> Model:
    """ResNet-18: 4 stages of 2 basic blocks; 11,173,962 parameters on CIFAR-10.

    He normal convolutions without bias, each followed by BatchNorm; shortcuts project (option B).

    Args:
        input_shape: (height, width, channels) of one image.
        num_classes: number of classes, at least 2.
        stem: cifar is a 3x3 convolution; imagenet is 7x7 of stride 2, then max-pooling of stride 2.
        width: channels of the first stage; each next stage has twice as many.
        isqrt_cov: pools by iSQRT-COV (see `ISqrtCov`) of so many channels; None: by the mean.

    Returns:
        The `Model`: x [B, H, W, C] to logits [B, num_classes].

    Raises:
        ValueError: for a bad shape, fewer than 2 classes, a size below 1 or an unknown stem.

    Example:
        >>> import jax
        >>> params, _ = jax.eval_shape(resnet18((32, 32, 3), 10).init, jax.random.key(0))
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        11173962

    Reference: He, Zhang, Ren, Sun, Deep residual learning for image recognition, 2016, table 1.
    RECONSTRUCTED; the small stem is the field's, not the paper's.
    """
    return _resnet(input_shape, num_classes, (2, 2, 2, 2), width, stem=stem, isqrt_cov=isqrt_cov)


def resnet50(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    stem: Stem = "imagenet",
    width: int = 64,
    isqrt_cov: int | None = None,
) -> Model:
    """ResNet-50: stages of 3, 4, 6 and 3 bottleneck blocks; 25,557,032 parameters on ImageNet.

    As ResNet-18, with the stride of a block in its 3x3 convolution ("v1.5").

    Args:
        input_shape: (height, width, channels) of one image.
        num_classes: number of classes, at least 2.
        stem: imagenet is 7x7 of stride 2, then max-pooling of stride 2; cifar is a 3x3 convolution.
        width: channels inside the first stage's blocks; each next stage has twice as many.
        isqrt_cov: pools by iSQRT-COV (see `ISqrtCov`) of so many channels, 256 in the paper; None:
            by the mean.

    Returns:
        The `Model`: x [B, H, W, C] to logits [B, num_classes].

    Raises:
        ValueError: for a bad shape, fewer than 2 classes, a size below 1 or an unknown stem.

    Example:
        >>> import jax
        >>> params, _ = jax.eval_shape(resnet50((224, 224, 3), 1000).init, jax.random.key(0))
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        25557032

    Reference: He, Zhang, Ren, Sun, Deep residual learning for image recognition, 2016, table 1.
    RECONSTRUCTED.
    """
    options = {"stem": stem, "bottleneck": True, "isqrt_cov": isqrt_cov}
    return _resnet(input_shape, num_classes, (3, 4, 6, 3), width, **options)


def _resnet(input_shape, num_classes, depths, width, **options):
    checks.image(input_shape)
    checks.integer("num_classes", num_classes, 2)
    checks.integer("width", width)
    checks.choice("stem", options["stem"], ("cifar", "imagenet"))
    check_pooling(options["isqrt_cov"])
    return functional(
        lambda rngs: ResNet(input_shape[2], num_classes, depths, width, rngs, **options)
    )
