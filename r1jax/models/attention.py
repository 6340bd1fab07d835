"""Attention modules: latent (MLA) and grouped-query (GQA).

Both attend within packed rows, or from new tokens to a cache.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from r1jax import ops
from r1jax.models import cache as caches
from r1jax.models.cache import Cache
from r1jax.models.config import ModelConfig
from r1jax.models.layers import Layer, RMSNorm
from r1jax.models.rope import rotate
from r1jax.models.rows import RowLayout
from r1jax.parallel import context

LATENT_EPSILON = 1e-6  # Of the RMSNorms of latents, in all released models.


class LatentAttention(Layer):
  """Multi-head latent attention, MLA (arXiv:2412.19437, sec. 2.1.1).

  Each token is compressed to a latent of R numbers, from which the keys and
  values of all heads are computed, and one key with RoPE that all heads share.
  The cache holds only these two.
  """

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    layout: RowLayout,
    layer: int | Int[Array, ""] | None = None,
    cache: Cache | None = None,
  ) -> tuple[Float[Array, "B T D"], Cache | None]:
    """The output of attention, and the cache with these tokens appended.

    Args:
      x: normalised hidden states.
      layout: of the rows.
      layer: the layer's number, for the cache.
      cache: of earlier tokens; None to attend only within the rows.
    """
    a, d = self.config.attention, x.shape[-1]
    norm = lambda name: RMSNorm(LATENT_EPSILON, axis=None, name=name)
    q_axes = ("width", "heads", None)

    # Down-projection to the query latent, the key/value latent and the shared
    # key, as one product (eq. 1, 3 and 6).
    latent_sizes = (a.q_rank or 0) + a.kv_rank + a.rope_size
    qkv_down = self.dense_weight("qkv_down", (d, latent_sizes), ("width", None))
    latents = ops.linear(x, qkv_down)
    if a.q_rank is None:
      q = self.dense_weight("q", (d, a.num_heads, a.key_size), q_axes)
      queries = ops.linear(x, q)
    else:
      q_latent, latents = jnp.split(latents, [a.q_rank], axis=-1)
      q_shape = (a.q_rank, a.num_heads, a.key_size)
      q_up = self.dense_weight("q_up", q_shape, q_axes)
      queries = ops.linear(norm("q_norm")(q_latent), q_up)
    nope_queries, rope_queries = jnp.split(queries, [a.nope_size], axis=-1)
    rope_queries = rotate(rope_queries, layout.rotation, interleaved=True)
    kv_latent, shared_key = jnp.split(latents, [a.kv_rank], axis=-1)
    shared_key = rotate(shared_key, layout.rotation, interleaved=True)
    latents = jnp.concatenate([norm("kv_norm")(kv_latent), shared_key], axis=-1)

    # Up-projection to keys and values of each head (eq. 2 and 5).
    kv_shape = (a.kv_rank, a.num_heads, a.nope_size + a.value_size)
    kv_up = self.dense_weight("kv_up", kv_shape, ("width", "heads", None))
    scale = softmax_scale(self.config)
    if cache is None:
      heads = context.latent_attention(
        jnp.concatenate([nope_queries, rope_queries], axis=-1),
        latents,
        kv_up,
        scale=scale,
        k_start=layout.k_start,
        prefix_end=layout.prefix_end,
      )
    else:
      # With a cache, the up-projections are absorbed into queries and output,
      # q (W_k c) = (q W_k) c, so that attention reads the latents c directly.
      key_up, value_up = jnp.split(kv_up, [a.nope_size], axis=-1)
      absorbed = jnp.einsum("BTNH,RNH->BTNR", nope_queries, key_up)
      queries = jnp.concatenate([absorbed, rope_queries], axis=-1)[:, :, None]
      cache = caches.append(cache, layer, (latents[:, :, None],))
      mixed = caches.attend(cache, layer, queries, scale=scale)
      mixed = mixed[..., 0, :, : a.kv_rank]
      heads = jnp.einsum("BTNR,RNH->BTNH", mixed, value_up)

    out_shape = (a.num_heads, a.value_size, d)
    out = self.dense_weight("out", out_shape, ("heads", None, "width"))
    return project_heads(heads, out), cache


class GroupedQueryAttention(Layer):
  """Grouped-query attention, GQA (arXiv:2305.13245).

  One weight projects to the queries, the key and the value of each key/value
  head, in this order. It is one product, and sharding it over key/value heads
  keeps each group together.
  """

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    layout: RowLayout,
    layer: int | Int[Array, ""] | None = None,
    cache: Cache | None = None,
  ) -> tuple[Float[Array, "B T D"], Cache | None]:
    """The output of attention, and the cache; see `LatentAttention`."""
    a, d = self.config.attention, x.shape[-1]
    group = a.num_heads // a.num_kv_heads
    head_shape = (a.num_kv_heads, group + 2, a.head_size)
    axes = ("kv_heads", None, None)

    qkv = self.dense_weight("qkv", (d, *head_shape), ("width", *axes))
    heads = ops.linear(x, qkv)
    if a.bias:
      zeros = nn.initializers.zeros
      heads += self.dense_weight("qkv_bias", head_shape, axes, zeros)
    rotated = rotate(heads[..., :-1, :], layout.rotation, interleaved=False)
    queries, keys = rotated[..., :-1, :], rotated[..., -1, :]
    values = heads[..., -1, :]

    scale = softmax_scale(self.config)
    if cache is None:
      heads = context.packed_attention(
        queries,
        keys,
        values,
        scale=scale,
        k_start=layout.k_start,
        prefix_end=layout.prefix_end,
      )
    else:
      cache = caches.append(cache, layer, (keys, values))
      heads = caches.attend(cache, layer, queries, scale=scale)

    out_shape = (a.num_kv_heads, group, a.head_size, d)
    out_axes = ("kv_heads", None, None, "width")
    out = self.dense_weight("out", out_shape, out_axes)
    return project_heads(heads, out), cache


def project_heads(
  heads: Float[Array, "B T *N H"], out: Float[Array, "*M H D"]
) -> Float[Array, "B T D"]:
  """The output projection of all heads, as one matrix product."""
  heads = heads.reshape(*heads.shape[:2], -1)
  return ops.linear(heads, out.reshape(-1, out.shape[-1]))


def softmax_scale(config: ModelConfig) -> float:
  """The factor of attention scores: 1 / sqrt(key size), times that of YaRN."""
  scaling = config.rope_scaling
  return config.attention.key_size**-0.5 * (
    scaling.softmax_scale if scaling else 1.0
  )
