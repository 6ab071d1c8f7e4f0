"""A small decoder-only Transformer."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdist.models import checks, layers
from jaxdist.models.functional import Model, functional

Positions = Literal["learned", "rotary"]
DEVIATION = 0.02


def rotate(x: jax.Array) -> jax.Array:
    """Rotary positions: turns the pairs (x_i, x_{i + D/2}) by the angle t / 10000^(2 i / D).

    Args:
        x: queries or keys [B, T, heads, D], D even.

    Returns:
        The same shape.

    Reference: Su et al., RoFormer, 2021, section 3.2.2, with the halves paired as is now usual.
    RECONSTRUCTED.
    """
    length, size = x.shape[1], x.shape[3]
    frequency = 10000.0 ** (-jnp.arange(0, size, 2) / size)
    angle = jnp.outer(jnp.arange(length), frequency)[None, :, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width, heads, mlp_ratio, dropout, rotary, residual_deviation, rngs):
        self.heads = heads
        self.rotary = rotary
        self.norm1 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.qkv = layers.dense(width, 3 * width, rngs, deviation=DEVIATION)
        self.out = layers.dense(width, width, rngs, deviation=residual_deviation)
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.up = layers.dense(width, mlp_ratio * width, rngs, deviation=DEVIATION)
        self.down = layers.dense(mlp_ratio * width, width, rngs, deviation=residual_deviation)
        self.dropout = layers.dropout(dropout, rngs)

    def __call__(self, x):
        x = x + self.dropout(self.out(self.attend(self.qkv(self.norm1(x)))))
        return x + self.dropout(self.down(jax.nn.gelu(self.up(self.norm2(x)))))

    def attend(self, qkv):
        batch, length, _ = qkv.shape
        q, k, v = jnp.split(qkv.reshape(batch, length, 3 * self.heads, -1), 3, axis=2)
        if self.rotary:
            q, k = rotate(q), rotate(k)
        return jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(batch, length, -1)


class Transformer(layers.Chain):
    """Embedding, pre-norm blocks, LayerNorm, and a head that may be the embedding's transpose."""

    def __init__(
        self, length, vocabulary, width, depth, heads, mlp_ratio, dropout, positions, tied, rngs
    ):
        rotary = positions == "rotary"
        residual_deviation = DEVIATION / math.sqrt(2 * depth)
        self.embed = layers.embedding(vocabulary, width, rngs, deviation=DEVIATION)
        self.positions = (
            None if rotary else layers.embedding(length, width, rngs, deviation=DEVIATION)
        )
        self.dropout = layers.dropout(dropout, rngs)
        self.blocks = nnx.List(
            [
                Block(width, heads, mlp_ratio, dropout, rotary, residual_deviation, rngs)
                for _ in range(depth)
            ]
        )
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.head = (
            None if tied else layers.dense(width, vocabulary, rngs, deviation=DEVIATION, bias=False)
        )

    def chain(self):
        blocks = {f"block_{i}": block for i, block in enumerate(self.blocks)}
        return {"embed": self.embedded} | blocks | {"head": self.logits}

    def embedded(self, tokens):
        x = self.embed(tokens)
        if self.positions is not None:
            length, longest = tokens.shape[1], self.positions.num_embeddings
            if length > longest:
                checks.reject(
                    "x.shape",
                    tokens.shape,
                    f"(B, T) with T at most {longest}, the number of learned positions",
                )
            x = x + self.positions(jnp.arange(length))[None]
        return self.dropout(x)

    def logits(self, x):
        x = self.norm(x)
        return self.embed.attend(x) if self.head is None else self.head(x)


def transformer(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    mlp_ratio: int = 4,
    dropout: float = 0.0,
    positions: Positions = "learned",
    tied: bool = True,
) -> Model:
    """A decoder-only Transformer: pre-norm blocks, causal attention, GELU.

    Weights start normal with deviation 0.02, those that end a residual branch with
    0.02 / sqrt(2 depth), as in GPT-2. Dropout acts on the embedding and on the branches.

    Args:
        input_shape: (T,), the number of tokens in an example.
        num_classes: size of the vocabulary, at least 2.
        width: features of a token, a multiple of heads.
        depth: number of blocks.
        heads: attention heads per block.
        mlp_ratio: hidden units of a block's MLP, in widths.
        dropout: probability of dropping a value in training, in [0, 1).
        positions: learned is a table of T positions; rotary turns queries and keys, at any length.
        tied: whether the last layer is the transpose of the embedding.

    Returns:
        The `Model`: x int32 tokens [B, T] to logits [B, T, num_classes].

    Raises:
        ValueError: for a bad shape, a vocabulary under 2, a size below 1, heads that do not divide
            the width, rotary heads of odd size, a rate outside [0, 1), or unknown positions.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = transformer((16,), 50, width=32, depth=1, positions="rotary")
        >>> params, state = model.init(jax.random.key(0))
        >>> model.apply(params, state, jnp.ones((2, 16), jnp.int32), train=True)[0].shape
        (2, 16, 50)

    Reference: Radford et al., Language models are unsupervised multitask learners, 2019, section
    2.3. RECONSTRUCTED.
    """
    checks.integers("input_shape", input_shape)
    if len(input_shape) != 1:
        checks.reject("input_shape", input_shape, "(T,), the number of tokens in an example")
    checks.integer("num_classes", num_classes, 2)
    checks.integer("width", width)
    checks.integer("depth", depth)
    checks.integer("heads", heads)
    checks.integer("mlp_ratio", mlp_ratio)
    if width % heads:
        checks.reject("heads", heads, f"divisors of the width ({width})")
    checks.rate("dropout", dropout)
    checks.choice("positions", positions, ("learned", "rotary"))
    if positions == "rotary" and (width // heads) % 2:
        checks.reject(
            "heads",
            heads,
            f"those whose width / heads is even, with rotary positions (width={width})",
        )
    return functional(
        lambda rngs: Transformer(
            input_shape[0],
            num_classes,
            width,
            depth,
            heads,
            mlp_ratio,
            dropout,
            positions,
            tied,
            rngs,
        )
    )
