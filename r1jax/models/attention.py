"""Multi-head latent attention (arXiv:2405.04434, sec. 2.1) and its cache.

Keys and values of a token are made from one latent vector of R numbers, plus
one rotated key that all heads share. The cache holds just these two.
"""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from r1jax.models import ops
from r1jax.models.config import ModelConfig
from r1jax.models.layers import rms_norm, rotate
from r1jax.types import Params


@chex.dataclass(frozen=True)
class Cache:
  """Latents of the tokens seen so far: C = R + rope_size numbers each."""

  prefix: tuple[Float[Array, "S0 C"], ...]  # By layer; all rows share it.
  rows: tuple[Float[Array, "B S C"], ...]  # By layer; what follows the prefix.
  lengths: Int[Array, "B"]  # Tokens in `rows`; what lies beyond is garbage.


def empty_cache(
  config: ModelConfig, rows: int, size: int, prefix: tuple = ()
) -> Cache:
  """Room for `size` tokens in each row, after the `prefix` of another cache."""
  shape = (rows, size, config.cache_size)
  nothing = jnp.zeros((0, config.cache_size))
  return Cache(
    prefix=prefix or (nothing,) * config.num_layers,
    rows=tuple(jnp.zeros(shape) for _ in range(config.num_layers)),
    lengths=jnp.zeros(rows, jnp.int32),
  )


def append(
  rows: Float[Array, "B S C"],
  latents: Float[Array, "B T C"],
  lengths: Int[Array, "B"],
) -> Float[Array, "B S C"]:
  """Writes `latents` behind the first `lengths` tokens of each row."""
  row = jnp.arange(latents.shape[0])[:, None]
  slot = lengths[:, None] + jnp.arange(latents.shape[1])
  return rows.at[row, slot].set(latents, mode="drop", unique_indices=True)


def latents(
  params: Params,
  x: Float[Array, "B T D"],
  positions: Int[Array, "B T"],
  config: ModelConfig,
) -> Float[Array, "B T C"]:
  """What the cache holds: the normalised latent, then the rotated key."""
  latent, key = jnp.split(x @ params["kv_down"], [config.kv_rank], axis=-1)
  latent = rms_norm(latent, params["kv_norm"], config.norm_epsilon)
  key = rotate(key, positions, config.rope_theta)
  return jnp.concatenate([latent, key], axis=-1)


def queries(
  params: Params,
  x: Float[Array, "B T D"],
  positions: Int[Array, "B T"],
  config: ModelConfig,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N Hr"]]:
  """Queries without position, and rotated ones."""
  latent = rms_norm(x @ params["q_down"], params["q_norm"], config.norm_epsilon)
  both = jnp.einsum("BTR,RNH->BTNH", latent, params["q_up"])
  plain, turned = jnp.split(both, [config.nope_size], axis=-1)
  return plain, rotate(turned, positions, config.rope_theta)


def softmax_scale(config: ModelConfig) -> float:
  """1 / sqrt of the size of a whole key."""
  return (config.nope_size + config.rope_size) ** -0.5


def attend_packed(
  params: Params,
  x: Float[Array, "B T D"],
  positions: Int[Array, "B T"],
  k_start: Int[Array, "B T"],
  prefix_end: Int[Array, "B T"],
  config: ModelConfig,
) -> Float[Array, "B T D"]:
  """Attention within packed rows, with keys and values made for each head."""
  plain, turned = queries(params, x, positions, config)
  latent, key = jnp.split(
    latents(params, x, positions, config), [config.kv_rank], axis=-1
  )
  keys_values = jnp.einsum("BTR,RNH->BTNH", latent, params["kv_up"])
  keys, values = jnp.split(keys_values, [config.nope_size], axis=-1)
  shared = jnp.broadcast_to(
    key[:, :, None], (*keys.shape[:3], config.rope_size)
  )
  heads = ops.attention(
    jnp.concatenate([plain, turned], axis=-1),
    jnp.concatenate([keys, shared], axis=-1),
    values,
    scale=softmax_scale(config),
    k_start=k_start,
    prefix_end=prefix_end,
  )
  return jnp.einsum("BTNH,NHD->BTD", heads, params["out"])


def attend_cached(
  params: Params,
  x: Float[Array, "B T D"],
  positions: Int[Array, "B T"],
  prefix: Float[Array, "S0 C"],
  rows: Float[Array, "B S C"],
  lengths: Int[Array, "B"],
  config: ModelConfig,
) -> tuple[Float[Array, "B T D"], Float[Array, "B S C"]]:
  """Attention of T new tokens per row to the prefix, their row and themselves.

  The up-projections of keys and values are absorbed into the query and the
  output, so that all heads read the latents themselves. Returns the output and
  the rows with the new tokens appended.
  """
  rows = append(rows, latents(params, x, positions, config), lengths)
  plain, turned = queries(params, x, positions, config)
  key_up, value_up = jnp.split(params["kv_up"], [config.nope_size], axis=-1)
  absorbed = jnp.concatenate(
    [jnp.einsum("BTNH,RNH->BTNR", plain, key_up), turned], axis=-1
  )
  absorbed *= softmax_scale(config)
  to_prefix = jnp.einsum("BTNC,SC->BTNS", absorbed, prefix)
  to_rows = jnp.einsum("BTNC,BSC->BTNS", absorbed, rows)
  last = lengths[:, None] + jnp.arange(x.shape[1])  # [B, T]
  visible = jnp.arange(rows.shape[1]) <= last[..., None]
  to_rows = jnp.where(visible[:, :, None], to_rows, -1e30)
  # One softmax over both parts, which are never joined.
  largest = jnp.maximum(
    to_prefix.max(-1, keepdims=True, initial=-1e30),
    to_rows.max(-1, keepdims=True),
  )
  of_prefix, of_rows = jnp.exp(to_prefix - largest), jnp.exp(to_rows - largest)
  mixed = jnp.einsum("BTNS,SC->BTNC", of_prefix, prefix)
  mixed += jnp.einsum("BTNS,BSC->BTNC", of_rows, rows)
  total = of_prefix.sum(-1, keepdims=True) + of_rows.sum(-1, keepdims=True)
  mixed = (mixed / total)[..., : config.kv_rank]
  heads = jnp.einsum("BTNR,RNH->BTNH", mixed, value_up)
  return jnp.einsum("BTNH,NHD->BTD", heads, params["out"]), rows
