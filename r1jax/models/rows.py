"""Rows of tokens: how they are arranged, and what is asked of them."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from r1jax.models.cache import Cache
from r1jax.models.config import ModelConfig
from r1jax.models.rope import Rotation, rotation
from r1jax.types import Ints, Packed


@chex.dataclass(frozen=True)
class RowLayout:
  """How tokens are arranged in their rows: the same for every layer."""

  rotation: Rotation
  k_start: Int[Array, "B T"]
  prefix_end: Int[Array, "B T"]
  is_token: Float[Array, "B T"]  # 1.0 for a token, 0.0 for an empty slot.


def row_layout(
  packed: Packed, cache: Cache | None, config: ModelConfig
) -> RowLayout:
  """The layout of `packed` rows; with a cache, they continue those in it."""
  positions = jnp.asarray(packed.positions)
  is_token = (positions >= 0).astype(jnp.float32)
  if cache is not None:
    positions = cache.positions[:, None] + jnp.arange(positions.shape[1])
  return RowLayout(
    rotation=rotation(positions, config),
    k_start=jnp.asarray(packed.k_start),
    prefix_end=jnp.asarray(packed.prefix_end),
    is_token=is_token,
  )


def pack_rows(tokens: Ints) -> Packed:
  """Whole rows [B, T] as `Packed`: one text per row, none of its tokens empty.

  Values are asked for of all tokens but the first.
  """
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  origin = jnp.arange(tokens.size).reshape(tokens.shape) + 1
  zeros = jnp.zeros(tokens.shape, jnp.int32)
  return Packed(
    tokens=jnp.asarray(tokens),
    positions=positions,
    k_start=zeros,
    prefix_end=zeros,
    targets=jnp.roll(jnp.asarray(tokens), -1, axis=1),
    origin=origin.at[:, -1].set(-1),
  )


def mtp_targets(
  packed: Packed, depth: int = 1
) -> tuple[Int[Array, "B T"], Bool[Array, "B T"]]:
  """The targets of MTP block `depth`, and True where there is one.

  They are the tokens t + 1 + depth, within the text of token t.
  """
  roll = lambda x: jnp.roll(x, -depth, axis=1)
  # Where a text ends, the next one may begin, in the row and in `origin`.
  same_text = (packed.origin >= 0) & (
    roll(packed.origin) == packed.origin + depth
  )
  same_text &= roll(packed.positions) == packed.positions + depth
  return roll(packed.targets), same_text
