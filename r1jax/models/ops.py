"""The one door to `kernels/`: each op in plain JAX, its specification."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from r1jax.models import blockwise
from r1jax.models import experts as routed
from r1jax.models.blockwise import NEVER, visible
from r1jax.models.chunks import over_chunks

NAIVE = 1024  # Keys up to which `attention` makes whole rows of scores.
BLOCK = 128  # Queries that `attention` then treats at once,
LONG_BLOCK = 512  # and queries and keys beyond NAIVE.
LOGITS = 2**25  # That exist at once in `linear_logprobs`: 128 MiB.
DENSE = 512  # Hidden units of all experts up to which all of them run.


def attention(
  queries: Float[Array, "B T K G H"],
  keys: Float[Array, "B T K H"],
  values: Float[Array, "B T K Hv"],
  *,
  scale: float,
  k_start: Int[Array, "B T"],
  prefix_end: Int[Array, "B T"],
  naive: int = NAIVE,
) -> tuple[Float[Array, "B T K G Hv"], Float[Array, "B T K G"]]:
  """Softmax attention over packed rows, and its log-sum-exp in float32.

  Query t sees key s when k_start[t] <= s <= t, or s < prefix_end[t] <= t. That
  covers packed texts and completions that share their prompt. Each of K keys
  serves G queries. Beyond `naive` keys, memory is linear in T.
  """
  length = queries.shape[1]
  queries = jnp.moveaxis(queries * scale, 1, 3)
  keys, values = (jnp.swapaxes(x, 1, 2) for x in (keys, values))
  if length <= naive:
    out, lse = _naive_attention(queries, keys, values, k_start, prefix_end)
  else:
    pad = -length % LONG_BLOCK
    widen = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, pad), (0, 0)])
    # Slots that pad see the last key alone.
    extend = lambda x, value: jnp.pad(
      x, ((0, 0), (0, pad)), constant_values=value
    )
    out, lse = blockwise.attention(
      widen(queries),
      widen(keys),
      widen(values),
      extend(k_start, length - 1),
      extend(prefix_end, 0),
      LONG_BLOCK,
    )
    out, lse = out[..., :length, :], lse[..., :length]
  return jnp.moveaxis(out, 3, 1), jnp.moveaxis(lse, 3, 1)


def _naive_attention(queries, keys, values, k_start, prefix_end):
  """Blocks of queries, which skip the keys after them."""
  outs, sums, length = [], [], queries.shape[3]
  for start in range(0, length, BLOCK):
    stop = min(start + BLOCK, length)
    mask = visible(
      jnp.arange(start, stop),
      jnp.arange(stop),
      k_start[:, start:stop],
      prefix_end[:, start:stop],
    )
    scores = jnp.einsum(
      "BKGTH,BKSH->BKGTS",
      queries[..., start:stop, :],
      keys[:, :, :stop],
      preferred_element_type=jnp.float32,
    )
    scores = jnp.where(mask[:, None, None], scores, NEVER)
    largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)
    total = weights.sum(axis=-1, keepdims=True)
    mixed = jnp.einsum(
      "BKGTS,BKSH->BKGTH", weights.astype(values.dtype), values[:, :, :stop]
    )
    outs.append((mixed / total).astype(values.dtype))
    sums.append((largest + jnp.log(total))[..., 0])
  return jnp.concatenate(outs, axis=3), jnp.concatenate(sums, axis=3)


def attention_to_cache(
  queries: Float[Array, "B T K G H"],
  prefix: tuple[Float[Array, "K S0 H"], Float[Array, "K S0 Hv"]],
  rows: tuple[Float[Array, "B K S H"], Float[Array, "B K S Hv"]],
  lengths: Int[Array, "B"],
  *,
  scale: float,
) -> Float[Array, "B T K G Hv"]:
  """Attention of T new tokens per row to the prefix, their row and themselves.

  `prefix` and `rows` are keys and values; the new tokens are in `rows` already,
  behind `lengths` older ones. Query t sees what stands up to itself.
  """
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  queries *= scale
  to_prefix = product("BTKGH,KSH->BKTGS", queries, prefix[0])
  to_rows = product("BTKGH,BKSH->BKTGS", queries, rows[0])
  last = lengths[:, None] + jnp.arange(queries.shape[1])  # [B, T]
  seen = jnp.arange(rows[0].shape[2]) <= last[..., None]
  to_rows = jnp.where(seen[:, None, :, None], to_rows, NEVER)
  # One softmax over both parts, which are never joined.
  largest = jnp.maximum(
    to_prefix.max(-1, keepdims=True, initial=NEVER),
    to_rows.max(-1, keepdims=True),
  )
  of_prefix, of_rows = jnp.exp(to_prefix - largest), jnp.exp(to_rows - largest)
  total = of_prefix.sum(-1, keepdims=True) + of_rows.sum(-1, keepdims=True)
  dtype = rows[1].dtype
  mixed = product("BKTGS,KSH->BKTGH", of_prefix.astype(dtype), prefix[1])
  mixed += product("BKTGS,BKSH->BKTGH", of_rows.astype(dtype), rows[1])
  return jnp.swapaxes((mixed / total).astype(dtype), 1, 2)


def experts(
  x: Float[Array, "M D"],
  gates: Float[Array, "M k"],
  indices: Int[Array, "M k"],
  gate_up: Float[Array, "E D twoF"],
  down: Float[Array, "E F D"],
  *,
  chunk: int,
) -> Float[Array, "M D"]:
  """sum_k gates[:, k] * swiglu of expert indices[:, k]; drops no token.

  Buffers, of the worst case, exist for `chunk` tokens at a time.
  """
  if down.shape[0] * down.shape[1] <= DENSE:
    fn = routed.dense
  else:
    fn = _sparse_experts
  return over_chunks(fn, chunk, (gate_up, down), (x, gates), indices)


def _sparse_experts(weights, floats, indices):
  return jax.lax.platform_dependent(
    weights,
    floats,
    indices,
    tpu=routed.ragged,
    default=routed.blocked,
  )


def mask_padding(
  logits: Float[Array, "*B V"], vocab_size: int | None
) -> Float[Array, "*B V"]:
  """Logits of ids that no tokenizer makes are out of reach: -1e30."""
  if vocab_size is None or vocab_size == logits.shape[-1]:
    return logits
  return jnp.where(jnp.arange(logits.shape[-1]) < vocab_size, logits, NEVER)


def linear_logprobs(
  hidden: Float[Array, "M D"],
  unembed: Float[Array, "D V"],
  targets: Int[Array, "M"],
  *,
  temperature: float = 1.0,
  vocab_size: int | None = None,
  chunk: int | None = None,
) -> tuple[Float[Array, "M"], Float[Array, "M"]]:
  """log p(target) and entropy under softmax(hidden @ unembed / temperature).

  Both in nats and float32. Logits exist for `chunk` tokens at a time, in the
  gradient too, which makes them again; None takes 4096, or what LOGITS allows.
  Ids from `vocab_size` on are padding of V and have no probability. Sums over V
  are plain reductions, so V may be split over devices.
  """
  chunk = chunk or max(1, min(4096, LOGITS // unembed.shape[1]))
  fn = functools.partial(_logprobs, temperature, vocab_size)
  unembed = unembed.astype(hidden.dtype)
  return over_chunks(fn, chunk, unembed, hidden, targets)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _logprobs(temperature, vocab_size, unembed, hidden, targets):
  return _logprobs_forward(temperature, vocab_size, unembed, hidden, targets)[0]


def _logprobs_forward(temperature, vocab_size, unembed, hidden, targets):
  logits = jnp.dot(hidden, unembed, preferred_element_type=jnp.float32)
  logits = mask_padding(logits / temperature, vocab_size)
  normalizer = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
  is_target = jnp.arange(logits.shape[-1]) == targets[:, None]
  chosen = jnp.sum(jnp.where(is_target, logits, 0), axis=-1)
  logprobs = logits - normalizer
  entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
  saved = unembed, hidden, targets, logprobs, entropy
  return (chosen - normalizer[:, 0], entropy), saved


def _logprobs_backward(temperature, vocab_size, saved, gradients):
  """d logprob = 1[target] - p; d entropy = -p (log p + entropy)."""
  unembed, hidden, targets, logprobs, entropy = saved
  of_logprob, of_entropy = (x[:, None] for x in gradients)
  is_target = jnp.arange(logprobs.shape[-1]) == targets[:, None]
  d_logits = jnp.where(is_target, of_logprob, 0) - jnp.exp(logprobs) * (
    of_logprob + of_entropy * (logprobs + entropy[:, None])
  )
  d_logits = (d_logits / temperature).astype(hidden.dtype)
  product = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
  d_unembed = product(hidden.T, d_logits).astype(unembed.dtype)
  d_hidden = product(d_logits, unembed.T).astype(hidden.dtype)
  return d_unembed, d_hidden, None


_logprobs.defvjp(_logprobs_forward, _logprobs_backward)
