"""Latent and grouped-query attention, over packed rows or against a cache.

Latent attention (arXiv:2405.04434, sec. 2.1) makes keys and values of a token
from one latent vector of R numbers, plus one rotated key that all heads share.
The cache holds just these two.
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from r1jax.models import cache, context, ops
from r1jax.models.config import Latent, ModelConfig
from r1jax.models.layers import Rotation, linear, rms_norm, rotate
from r1jax.types import Packed, Params

LATENT_EPSILON = 1e-6  # Of the latents' norms, whatever the model's is.

# Of the dimensions of queries, of what makes keys and values, of its weights.
LATENT_NAMES = (
  ("rows", "tokens", "heads", None, None),
  ("rows", "tokens", None),
  (None, "heads", None),
)
GROUPED_NAMES = (
  ("rows", "tokens", "kv_heads", None, None),
  [("rows", "tokens", "kv_heads", None)] * 2,
  (),
)


def attend_packed(
  block: Params,
  x: Float[Array, "B T D"],
  packed: Packed,
  rotation: Rotation,
  config: ModelConfig,
) -> Float[Array, "B T D"]:
  """Attention within packed rows, with keys and values made for each head."""
  options = dict(
    scale=softmax_scale(config),
    k_start=packed.k_start,
    prefix_end=packed.prefix_end,
  )
  if isinstance(config.attention, Latent):
    plain, turned, cached = latents(block, x, rotation, config)
    queries = jnp.concatenate([plain, turned], axis=-1)[:, :, :, None]
    make, weights = functools.partial(latent_heads, config), block["kv_up"]
    names = LATENT_NAMES
  else:
    queries, *cached = grouped_heads(block, x, rotation, config)
    make, weights = lambda weights, cached: cached, ()
    names = GROUPED_NAMES
  if x.shape[1] > ops.NAIVE or context.is_split():
    heads = context.attend(make, queries, cached, weights, names, **options)
  else:
    heads, _ = ops.attention(queries, *make(weights, cached), **options)
  return merge(heads, block)


def attend_cached(
  block: Params,
  x: Float[Array, "B T D"],
  rotation: Rotation,
  seen: cache.Cache,
  rows: cache.Buffers,
  layer: int | Int[Array, ""],
  config: ModelConfig,
) -> tuple[Float[Array, "B T D"], cache.Buffers]:
  """Attention of T new tokens per row to the cache and to themselves.

  `rows` are those of `seen`, maybe longer by the tokens in other layers.
  Returns the output, and the rows with this layer's tokens appended.
  """
  latent = isinstance(config.attention, Latent)
  if latent:
    plain, turned, cached = latents(block, x, rotation, config)
    new = (cached[:, :, None],)
    queries = absorb(block, plain, turned, config)
  else:
    queries, *new = grouped_heads(block, x, rotation, config)
  rows = cache.append(rows, layer, tuple(new), seen.lengths)
  mixed = ops.attention_to_cache(
    queries,
    cache.parts(seen, rows, layer, x.shape[1]),
    scale=softmax_scale(config),
  )
  if latent:
    mixed = mixed[..., 0, :, : config.attention.kv_rank]
    value_up = block["kv_up"][..., config.attention.nope_size :]
    mixed = jnp.einsum("BTNR,RNH->BTNH", mixed, value_up)
  return merge(mixed, block), rows


def merge(
  heads: Float[Array, "B T *N H"], block: Params
) -> Float[Array, "B T D"]:
  """All heads through the output projection."""
  out = block["out"].reshape(-1, block["out"].shape[-1])
  return linear(heads.reshape(*heads.shape[:2], -1), out)


def softmax_scale(config: ModelConfig) -> float:
  """1 / sqrt of the size of a whole key, times what YaRN adds."""
  a = config.attention
  size = a.key_size if isinstance(a, Latent) else a.head_size
  scaling = config.rope_scaling
  return size**-0.5 * (scaling.softmax_scale if scaling else 1.0)


def grouped_heads(
  block: Params,
  x: Float[Array, "B T D"],
  rotation: Rotation,
  config: ModelConfig,
) -> tuple[
  Float[Array, "B T K G H"], Float[Array, "B T K H"], Float[Array, "B T K H"]
]:
  """Queries and keys, rotated, and values."""
  heads = linear(x, block["qkv"])
  if "qkv_bias" in block:
    heads += block["qkv_bias"]
  turned = rotate(heads[..., :-1, :], rotation, interleaved=False)
  return turned[..., :-1, :], turned[..., -1, :], heads[..., -1, :]


def latents(
  block: Params,
  x: Float[Array, "B T D"],
  rotation: Rotation,
  config: ModelConfig,
) -> tuple[
  Float[Array, "B T N H"], Float[Array, "B T N Hr"], Float[Array, "B T C"]
]:
  """Queries without position, rotated ones, and what the cache holds.

  That is the normalised latent, then the rotated key.
  """
  a = config.attention
  down = linear(x, block["qkv_down"])
  if a.q_rank is None:
    queries = linear(x, block["q"])
  else:
    latent, down = jnp.split(down, [a.q_rank], axis=-1)
    latent = rms_norm(latent, block["q_norm"], LATENT_EPSILON)
    queries = linear(latent, block["q_up"])
  plain, turned = jnp.split(queries, [a.nope_size], axis=-1)
  turned = rotate(turned, rotation, interleaved=True)
  latent, key = jnp.split(down, [a.kv_rank], axis=-1)
  latent = rms_norm(latent, block["kv_norm"], LATENT_EPSILON)
  key = rotate(key, rotation, interleaved=True)
  return plain, turned, jnp.concatenate([latent, key], axis=-1)


def latent_heads(
  config: ModelConfig,
  kv_up: Float[Array, "R N H2"],
  cached: Float[Array, "B T C"],
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N Hv"]]:
  """Keys and values of each head, made from the latents."""
  a = config.attention
  latent, key = jnp.split(cached, [a.kv_rank], axis=-1)
  both = linear(latent, kv_up)
  keys, values = jnp.split(both, [a.nope_size], axis=-1)
  shared = jnp.broadcast_to(key[:, :, None], (*keys.shape[:3], a.rope_size))
  return jnp.concatenate([keys, shared], axis=-1), values


def absorb(
  block: Params,
  plain: Float[Array, "B T N H"],
  turned: Float[Array, "B T N Hr"],
  config: ModelConfig,
) -> Float[Array, "B T 1 N C"]:
  """Queries that read the latents themselves: (q W_k) c = q (W_k c)."""
  key_up = block["kv_up"][..., : config.attention.nope_size]
  reading = jnp.einsum("BTNH,RNH->BTNR", plain, key_up)
  return jnp.concatenate([reading, turned], axis=-1)[:, :, None]
