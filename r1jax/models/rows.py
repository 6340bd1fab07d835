"""Rows of packed tokens: their layout for the layers, and their targets."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from r1jax.models.cache import Cache
from r1jax.models.config import ModelConfig
from r1jax.models.rope import Rotation, rotation
from r1jax.types import Ints, Packed


@chex.dataclass(frozen=True)
class RowLayout:
  """What every layer needs to know about the tokens of a batch of rows."""

  rotation: Rotation  # Of RoPE.
  k_start: Int[Array, "B T"]  # See `Packed`.
  prefix_end: Int[Array, "B T"]  # See `Packed`.
  is_token: Float[Array, "B T"]  # 1.0 for a token, 0.0 for an empty slot.


def row_layout(
  packed: Packed, cache: Cache | None, config: ModelConfig
) -> RowLayout:
  """The layout of `packed` rows; with a cache, rows continue the cache's."""
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
  """Rows [B, T] of one text each, without padding, as `Packed`.

  Every token but the first of a row is a target.
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
  """The targets of MTP block `depth`, and a mask, True where there is one.

  The target of token t is token t + 1 + depth of the same text.
  """
  roll = lambda x: jnp.roll(x, -depth, axis=1)
  # Slots t and t + depth are of one text if both origin and position advance by
  # depth. Either alone may also do so from the end of one text to the next.
  same_text = (packed.origin >= 0) & (
    roll(packed.origin) == packed.origin + depth
  )
  same_text &= roll(packed.positions) == packed.positions + depth
  return roll(packed.targets), same_text
