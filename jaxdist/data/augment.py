"""Augmentation and normalisation of a batch of images, inside jit."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def normalize(x: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Brings pixels to mean 0 and deviation 1: (x / 255 - mean) / std, per channel.

    Args:
        x: pixels 0..255 of any type, `[..., C]`; with mean () (tokens) it is returned as it is.
        mean: mean of the training pixels in [0, 1], C numbers.
        std: their standard deviation, C numbers.

    Returns:
        float32 of x's shape.

    Raises:
        ValueError: if there is not one number for each channel.

    Example:
        >>> normalize(jnp.full((1, 2, 2, 1), 255, jnp.uint8), mean=(0.5,), std=(0.25,)).max().item()
        2.0
    """
    if not mean:
        return x
    if not len(mean) == len(std) == x.shape[-1]:
        raise ValueError(
            f"mean of {len(mean)} numbers, std of {len(std)} for x of shape {list(x.shape)}: "
            f"allowed is one for each of the {x.shape[-1]} channels"
        )
    shape = (1,) * (x.ndim - 1) + (len(mean),)
    mean, std = (jnp.asarray(value, jnp.float32).reshape(shape) for value in (mean, std))
    return (x.astype(jnp.float32) / 255 - mean) / std


def make_augment(
    *, crop: int = 0, flip: bool = False, cutout: int = 0
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Random changes of images, drawn anew for each example: crop, then flip, then cutout.

    crop: pad each side with zeros, then cut out the original size at a uniformly random offset;
    flip: mirror left to right with probability 1/2; cutout: set to zero a square around a uniformly
    random pixel, clipped at the border. Zero is black for pixels 0..255 and the mean colour for
    normalised ones.

    Args:
        crop: padding in pixels; 0 for no crop.
        flip: whether to mirror.
        cutout: side of the square in pixels; 0 for none.

    Returns:
        `augment(x, key) -> x` for x `[B, H, W, C]` of any type, which is kept.

    Raises:
        ValueError: if crop or cutout is negative; by `augment`, if x is no batch of images.

    Example:
        >>> augment = make_augment(crop=4, flip=True)
        >>> augment(jnp.ones((2, 32, 32, 3)), jax.random.key(0)).shape
        (2, 32, 32, 3)

    Reference:
        Crop and flip as in the usual CIFAR recipe; cutout of DeVries and Taylor 2017,
        "Improved regularization of convolutional neural networks with cutout": RECONSTRUCTED.
    """
    for name, value in {"crop": crop, "cutout": cutout}.items():
        if value < 0:
            raise ValueError(f"{name}={value}: allowed are integers from 0")

    def augment(x: jax.Array, key: jax.Array) -> jax.Array:
        if x.ndim != 4:
            raise ValueError(f"x.shape={list(x.shape)}: allowed are batches of images [B, H, W, C]")
        crop_key, flip_key, cutout_key = jax.random.split(key, 3)
        if crop:
            x = _crop(x, crop_key, crop)
        if flip:
            mirrored = jax.random.bernoulli(flip_key, jnp.float32(0.5), shape=(len(x), 1, 1, 1))
            x = jnp.where(mirrored, x[:, :, ::-1], x)
        if cutout:
            x = _cutout(x, cutout_key, cutout)
        return x

    return augment


def _crop(x: jax.Array, key: jax.Array, padding: int) -> jax.Array:
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    offsets = jax.random.randint(key, (len(x), 2), 0, 2 * padding + 1, jnp.int32)
    window = lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), x.shape[1:])
    return jax.vmap(window)(padded, offsets)


def _cutout(x: jax.Array, key: jax.Array, side: int) -> jax.Array:
    batch, *size, _ = x.shape
    centers = jax.random.randint(key, (batch, 2), 0, jnp.array([size]), jnp.int32)
    inside = [
        (jnp.arange(n)[None] >= center - side // 2)
        & (jnp.arange(n)[None] < center - side // 2 + side)
        for n, center in zip(size, jnp.split(centers, 2, axis=1), strict=True)
    ]
    hidden = inside[0][:, :, None, None] & inside[1][:, None, :, None]
    return jnp.where(hidden, jnp.zeros((), x.dtype), x)
