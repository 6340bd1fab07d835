"""One token: from logits to a choice and its log-probability, without sorting.

The key of a token is a function of (seed, round, prompt, completion, position)
alone, so that what is sampled does not depend on who shares the batch.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

BLOCK = 32  # Of the two-level cumulative sum.
EVALUATION = 2**32 - 1  # Begins a stream apart: no round has this number.


def token_keys(
  keys: Key[Array, "B"], positions: Int[Array, "B"]
) -> Key[Array, "B"]:
  """The keys of the tokens at `positions` of their completions."""
  return jax.vmap(jax.random.fold_in)(keys, positions)


@functools.partial(jax.jit, static_argnames="evaluation")
def completion_keys(
  seed: int | Int[Array, ""],
  round: int | Int[Array, ""],
  prompts: Int[Array, "B"],
  members: Int[Array, "B"],
  *,
  evaluation: bool = False,
) -> Key[Array, "B"]:
  """The keys of completions: prompt's row in the round, member of its group.

  Those of an evaluation are never those of a round, even of the same numbers.
  """
  key = jax.random.key(seed)
  if evaluation:
    key = jax.random.fold_in(key, EVALUATION)
  key = jax.random.fold_in(key, round)
  fold = lambda p, g: jax.random.fold_in(jax.random.fold_in(key, p), g)
  return jax.vmap(fold)(prompts, members)


def sample(
  logits: Float[Array, "B V"],
  keys: Key[Array, "B"],
  *,
  temperature: float,
  top_p: float = 1.0,
  top_k: int = 0,
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
  """A token per row, and its log-probability under the tempered policy.

  The token is where the cumulative distribution passes one uniform draw. With
  `top_k` above 0 only the k most probable tokens are drawn from; with `top_p`
  below 1 only the most probable of these that together reach `top_p` of their
  sum. The log-probability is still that of the whole distribution. Temperature
  0 takes the most probable token; its log-probability is that of temperature 1.
  """
  logits = logits.astype(jnp.float32) / (temperature or 1.0)
  logprobs = jax.nn.log_softmax(logits)
  if temperature == 0:
    tokens = jnp.argmax(logprobs, axis=-1).astype(jnp.int32)
  else:
    probabilities = jnp.exp(logprobs)
    if top_k > 0:
      probabilities = most_probable(probabilities, top_k)
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
  """Zeroes all but the most probable tokens that reach `top_p` of the sum."""
  wanted = top_p * probabilities.sum(axis=-1)
  return truncate(
    probabilities,
    lambda kept: jnp.where(kept, probabilities, 0.0).sum(axis=-1) >= wanted,
  )


def most_probable(
  probabilities: Float[Array, "B V"], top_k: int
) -> Float[Array, "B V"]:
  """Zeroes all but the `top_k` most probable tokens; equals stay together."""
  return truncate(probabilities, lambda kept: kept.sum(axis=-1) >= top_k)


def truncate(
  probabilities: Float[Array, "B V"],
  enough: Callable[[Bool[Array, "B V"]], Bool[Array, "B"]],
) -> Float[Array, "B V"]:
  """Zeroes the least probable tokens as long as `enough` others are kept.

  The threshold is found by bisection, without a sort. It goes over the bits of
  the numbers, which have their order, so that 31 halvings find it exactly.
  """
  bits = jax.lax.bitcast_convert_type(probabilities, jnp.int32)

  def halve(_, bounds):
    low, high = bounds  # Enough, and not enough.
    middle = low + (high - low) // 2
    more = enough(bits >= middle[:, None])
    return jnp.where(more, middle, low), jnp.where(more, high, middle)

  highest = bits.max(axis=-1)
  bounds = jnp.zeros_like(highest), highest + 1
  low, _ = jax.lax.fori_loop(0, 31, halve, bounds)
  return jnp.where(bits >= low[:, None], probabilities, 0.0)
