"""The log-probabilities of prompts, from states that reading them has left."""

import functools

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from r1jax import ops
from r1jax.models import transformer
from r1jax.parallel import sharding
from r1jax.types import Floats, Ints, Params

COLUMNS = 32  # Tokens of each prompt whose logits exist at once.


@chex.dataclass(frozen=True)
class PromptScores:
  """log p(token | tokens before), in nats, of every token but the first."""

  logprobs: Floats  # [*B, T]
  top_ids: Ints  # [*B, T, k]: The most probable tokens, in order.
  top_logprobs: Floats  # [*B, T, k]


@functools.partial(jax.jit, static_argnames=("vocab_size", "top"))
def score_prompts(
  params: Params,
  prefix: Float[Array, "1 T0 D"],
  hidden: Float[Array, "B T1 D"],
  tokens: Int[Array, "B T"],
  *,
  vocab_size: int,
  top: int,
) -> PromptScores:
  """The log-probabilities of prompts at temperature 1, [B, T - 1].

  Args:
    params: of the model.
    prefix: states of what all prompts begin with, from `read_prefix`.
    hidden: states of what follows it, from `read_prompts`.
    tokens: of both, T = T0 + T1.
    vocab_size: ids from here on have probability 0.
    top: the most probable tokens that are returned for each.
  """
  rows = len(hidden)
  prefix = jnp.broadcast_to(prefix, (rows, *prefix.shape[1:]))
  hidden = jnp.concatenate([prefix, hidden], axis=1)[:, :-1]
  count = hidden.shape[1]
  padding = -count % COLUMNS

  def parts(x):
    x = jnp.pad(x, [(0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)])
    x = x.reshape(rows, -1, COLUMNS, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  def score(part):
    states, targets = part
    logits = transformer.logits(params, states)
    logprobs = jax.nn.log_softmax(ops.mask_padding(logits, vocab_size))
    chosen = jnp.take_along_axis(logprobs, targets[..., None], axis=-1)
    best, ids = jax.lax.top_k(logprobs, top)
    return PromptScores(logprobs=chosen[..., 0], top_ids=ids, top_logprobs=best)

  def whole(x):
    x = jnp.moveaxis(x, 0, 1).reshape(rows, -1, *x.shape[3:])[:, :count]
    return sharding.shard_constraint(x, *[None] * x.ndim)

  scores = jax.lax.map(score, (parts(hidden), parts(tokens[:, 1:])))
  return jax.tree.map(whole, scores)
