"""One token: from logits to a choice and its log-probability, without sorting.

The key of a token is a function of (seed, round, prompt, completion, position)
alone, so that what is sampled does not depend on who shares the batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

BLOCK = 32  # Of the two-level cumulative sum.


def token_keys(
  keys: Key[Array, "B"], positions: Int[Array, "B"]
) -> Key[Array, "B"]:
  """The keys of the tokens at `positions` of their completions."""
  return jax.vmap(jax.random.fold_in)(keys, positions)


@jax.jit
def completion_keys(
  seed: int | Int[Array, ""],
  round: int | Int[Array, ""],
  prompts: Int[Array, "B"],
  members: Int[Array, "B"],
) -> Key[Array, "B"]:
  """The keys of completions: prompt's row in the round, member of its group."""
  key = jax.random.fold_in(jax.random.key(seed), round)
  fold = lambda p, g: jax.random.fold_in(jax.random.fold_in(key, p), g)
  return jax.vmap(fold)(prompts, members)


def sample(
  logits: Float[Array, "B V"],
  keys: Key[Array, "B"],
  *,
  temperature: float,
  top_p: float = 1.0,
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
  """A token per row, and its log-probability under the tempered policy.

  The token is where the cumulative distribution passes one uniform draw. With
  `top_p` below 1 only the most probable tokens that together reach `top_p` are
  drawn from; the log-probability is still that of the whole distribution.
  """
  logits = logits.astype(jnp.float32) / temperature
  logprobs = jax.nn.log_softmax(logits)
  probabilities = jnp.exp(logprobs)
  if top_p < 1:
    probabilities = nucleus(probabilities, top_p)
  uniform = jax.vmap(jax.random.uniform)(keys)
  tokens = inverse_cdf(probabilities, uniform)
  chosen = jnp.take_along_axis(logprobs, tokens[:, None], axis=1)[:, 0]
  return tokens, chosen


def inverse_cdf(
  probabilities: Float[Array, "B V"], uniform: Float[Array, "B"]
) -> Int[Array, "B"]:
  """The first token at which the cumulative sum exceeds uniform * total.

  Tokens of probability 0 are never chosen. Two levels: whole blocks, then the
  tokens of one block.
  """
  rows, size = probabilities.shape
  blocks = jnp.pad(probabilities, ((0, 0), (0, -size % BLOCK)))
  blocks = blocks.reshape(rows, -1, BLOCK)
  ends = jnp.cumsum(blocks.sum(axis=-1), axis=-1)
  # Strictly below the total, so that rounding cannot point past the end.
  level = (uniform * ends[:, -1])[:, None]
  level = jnp.minimum(level, jnp.nextafter(ends[:, -1:], 0.0))
  block = jnp.sum(ends <= level, axis=-1)
  start = jnp.where(
    block > 0, jnp.take_along_axis(ends, block[:, None] - 1, axis=1)[:, 0], 0.0
  )
  inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
  within = jnp.sum(start[:, None] + jnp.cumsum(inside, axis=-1) <= level, -1)
  # The two sums may differ in the last bit: stay on a token that can be drawn.
  last = BLOCK - 1 - jnp.argmax(inside[:, ::-1] > 0, axis=-1)
  return (block * BLOCK + jnp.minimum(within, last)).astype(jnp.int32)


def nucleus(
  probabilities: Float[Array, "B V"], top_p: float
) -> Float[Array, "B V"]:
  """Zeroes all but the most probable tokens that reach `top_p` together.

  The threshold is found by bisection: 32 sums instead of a sort.
  """

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) / 2
    kept = jnp.where(probabilities >= middle, probabilities, 0.0).sum(-1)
    enough = (kept >= top_p)[:, None]
    return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

  highest = probabilities.max(axis=-1, keepdims=True)
  low, _ = jax.lax.fori_loop(0, 32, halve, (jnp.zeros_like(highest), highest))
  return jnp.where(probabilities >= low, probabilities, 0.0)
