"""The one door to `kernels/`: each op in plain JAX, its specification."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLOCK = 128  # Queries per block of `attention`.
LOGITS = 2**25  # That exist at once in `linear_logprobs`: 128 MiB.


def attention(
  queries: Float[Array, "B T N H"],
  keys: Float[Array, "B T N H"],
  values: Float[Array, "B T N Hv"],
  *,
  scale: float,
  k_start: Int[Array, "B T"],
  prefix_end: Int[Array, "B T"],
) -> Float[Array, "B T N Hv"]:
  """Softmax attention over packed rows.

  Query t sees key s when k_start[t] <= s <= t, or s < prefix_end[t] <= t. That
  covers packed texts and completions that share their prompt. Blocks of
  queries skip the keys after them.
  """
  queries, keys, values = (
    jnp.swapaxes(x, 1, 2) for x in (queries * scale, keys, values)
  )
  blocks = []
  for start in range(0, queries.shape[2], BLOCK):
    stop = min(start + BLOCK, queries.shape[2])
    query, key = jnp.arange(start, stop)[:, None], jnp.arange(stop)[None, :]
    first, shared = (x[:, start:stop, None] for x in (k_start, prefix_end))
    visible = (key <= query) & (key >= first) | (key < shared)
    scores = jnp.einsum(
      "BNTH,BNSH->BNTS",
      queries[:, :, start:stop],
      keys[:, :, :stop],
      preferred_element_type=jnp.float32,
    )
    scores = jnp.where(visible[:, None], scores, -1e30)
    scores -= jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores)
    mixed = jnp.einsum(
      "BNTS,BNSH->BNTH", weights.astype(values.dtype), values[:, :, :stop]
    )
    blocks.append(mixed / weights.sum(axis=-1, keepdims=True))
  return jnp.swapaxes(jnp.concatenate(blocks, axis=2), 1, 2)


def experts(
  x: Float[Array, "M D"],
  gates: Float[Array, "M E"],
  gate_up: Float[Array, "E D twoF"],
  down: Float[Array, "E F D"],
) -> Float[Array, "M D"]:
  """sum_e gates[:, e] * swiglu_e(x): every expert reads every token.

  Exact and dropless. Its cost is E experts per token where the model needs
  only the chosen few: right while E * F is no wider than a dense layer.
  """
  gate, up = jnp.split(jnp.einsum("MD,EDF->MEF", x, gate_up), 2, axis=-1)
  hidden = jax.nn.silu(gate) * up * gates[..., None].astype(x.dtype)
  return jnp.einsum("MEF,EFD->MD", hidden, down)


@functools.partial(jax.checkpoint, static_argnums=(3, 4))
def _logprobs_of_chunk(hidden, unembed, targets, temperature, vocab_size):
  logits = jnp.dot(hidden, unembed, preferred_element_type=jnp.float32)
  logits = mask_padding(logits / temperature, vocab_size)
  log_normalizer = jax.nn.logsumexp(logits, axis=-1)
  chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
  mean = jnp.sum(jax.nn.softmax(logits) * logits, axis=-1)
  return chosen - log_normalizer, log_normalizer - mean


def mask_padding(
  logits: Float[Array, "*B V"], vocab_size: int | None
) -> Float[Array, "*B V"]:
  """Logits of ids that no tokenizer makes are out of reach: -1e30."""
  if vocab_size is None or vocab_size == logits.shape[-1]:
    return logits
  return jnp.where(jnp.arange(logits.shape[-1]) < vocab_size, logits, -1e30)


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
  Ids from `vocab_size` on are padding of V and have no probability.
  """
  chunk = chunk or max(1, min(4096, LOGITS // unembed.shape[1]))
  of_chunk = lambda h, t: _logprobs_of_chunk(
    h, unembed, t, temperature, vocab_size
  )
  count = hidden.shape[0]
  if count <= chunk:
    return of_chunk(hidden, targets)
  padding = -count % chunk
  hidden = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(
    -1, chunk, hidden.shape[-1]
  )
  targets = jnp.pad(targets, (0, padding)).reshape(-1, chunk)
  _, outputs = jax.lax.scan(
    lambda _, inputs: (None, of_chunk(*inputs)), None, (hidden, targets)
  )
  logprobs, entropy = (x.reshape(-1)[:count] for x in outputs)
  return logprobs, entropy
