"""Two small convolutional networks: LeNet-5 and the CNN of two convolutions."""

import jax
import jax.numpy as jnp

from jaxdist.models import checks, layers
from jaxdist.models.functional import Model, functional


class LeNet5(layers.Chain):
    """Two unpadded convolutions of 5 x 5, each pooled, then dense layers of 120 and 84 units."""

    def __init__(self, input_shape, num_classes, field, rngs):
        height, width, channels = input_shape
        self.field = field
        rows, columns = (((max(side, field) - 4) // 2 - 4) // 2 for side in (height, width))
        self.conv1 = layers.conv(channels, 6, 5, rngs, padding=0, bias=True)
        self.conv2 = layers.conv(6, 16, 5, rngs, padding=0, bias=True)
        self.dense1 = layers.dense(16 * rows * columns, 120, rngs)
        self.dense2 = layers.dense(120, 84, rngs)
        self.head = layers.head(84, num_classes, rngs)

    def chain(self):
        return {
            "conv1": lambda x: layers.max_pool(jax.nn.relu(self.conv1(self.padded(x)))),
            "conv2": lambda x: layers.max_pool(jax.nn.relu(self.conv2(x))),
            "dense1": lambda x: jax.nn.relu(self.dense1(layers.flatten(x))),
            "dense2": lambda x: jax.nn.relu(self.dense2(x)),
            "head": self.head,
        }

    def padded(self, x):
        missing = [max(self.field - side, 0) for side in x.shape[1:3]]
        return jnp.pad(x, [(0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)])


def lenet5(input_shape: tuple[int, ...], num_classes: int, *, field: int = 32) -> Model:
    """LeNet-5 in its usual modern form: ReLU and max-pooling, He normal initialisation.

    conv 5x5x6, pool 2, conv 5x5x16, pool 2, dense 120, dense 84, dense num_classes: 61,706
    parameters on 28x28x1 or 32x32x1 with 10 classes. As in the paper, smaller images are centred in
    a field of zeros (28x28 in 32x32).

    Args:
        input_shape: (height, width, channels) of one image.
        num_classes: number of classes, at least 2.
        field: side in pixels of the field that smaller images are centred in; 16 suits 8x8 digits.

    Returns:
        The `Model`: x [B, H, W, C] to logits [B, num_classes].

    Raises:
        ValueError: for a bad shape, fewer than 2 classes, or sides under 16 pixels in their field.

    Example:
        >>> import jax
        >>> params, _ = jax.eval_shape(lenet5((28, 28, 1), 10).init, jax.random.key(0))
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        61706

    Reference: LeCun, Bottou, Bengio, Haffner, Gradient-based learning applied to document
    recognition, 1998. RECONSTRUCTED: C3 is fully connected, and S2, S4 and the last layer are
    today's.
    """
    checks.integer("field", field)
    checks.image(input_shape)
    if max(min(input_shape[:2]), field) < 16:
        checks.reject(
            "input_shape",
            input_shape,
            f"16 x 16 pixels and more, or centred in a field of 16 and more (field={field})",
        )
    checks.integer("num_classes", num_classes, 2)
    return functional(lambda rngs: LeNet5(input_shape, num_classes, field, rngs))


class CNN(layers.Chain):
    """Two padded convolutions of 3 x 3, each pooled, then one hidden dense layer."""

    def __init__(self, input_shape, num_classes, features, hidden, rngs):
        height, width, channels = input_shape
        self.conv1 = layers.conv(channels, features[0], 3, rngs, bias=True)
        self.conv2 = layers.conv(features[0], features[1], 3, rngs, bias=True)
        self.dense = layers.dense((height // 4) * (width // 4) * features[1], hidden, rngs)
        self.head = layers.head(hidden, num_classes, rngs)

    def chain(self):
        return {
            "conv1": lambda x: layers.max_pool(jax.nn.relu(self.conv1(x))),
            "conv2": lambda x: layers.max_pool(jax.nn.relu(self.conv2(x))),
            "dense": lambda x: jax.nn.relu(self.dense(layers.flatten(x))),
            "head": self.head,
        }


def cnn(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    features: tuple[int, int] = (32, 64),
    hidden: int = 128,
) -> Model:
    """The CNN of two convolutions that MNIST examples use, He normal initialisation.

    conv 3x3x32, ReLU, pool 2, conv 3x3x64, ReLU, pool 2, dense 128, ReLU, dense num_classes; the
    convolutions are padded: 421,642 parameters on 28x28x1 with 10 classes.

    Args:
        input_shape: (height, width, channels) of one image, sides of at least 4 pixels.
        num_classes: number of classes, at least 2.
        features: channels of the first and of the second convolution.
        hidden: units of the dense hidden layer.

    Returns:
        The `Model`: x [B, H, W, C] to logits [B, num_classes].

    Raises:
        ValueError: for a bad shape, sides under 4 pixels, fewer than 2 classes, or a size below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = cnn((8, 8, 1), 10, features=(4, 8), hidden=16)
        >>> params, state = model.init(jax.random.key(0))
        >>> model.apply(params, state, jnp.ones((2, 8, 8, 1)), train=True)[0].shape
        (2, 10)
    """
    checks.image(input_shape, 4)
    checks.integer("num_classes", num_classes, 2)
    checks.integers("features", features)
    if len(features) != 2:
        checks.reject("features", features, "two integers, one per convolution")
    checks.integer("hidden", hidden)
    return functional(lambda rngs: CNN(input_shape, num_classes, features, hidden, rngs))
