"""One token: from logits to a choice and its log-probability, without sorting.

The key of a token is a function of (seed, round, prompt, completion, position)
alone, so that what is sampled does not depend on who shares the batch.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from r1jax.parallel import sharding
from r1jax.types import Floats, Ints

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


def group_keys(
  seed: int, round: int, shape: tuple[int, int], *, evaluation: bool = False
) -> UInt32[np.ndarray, "P G 2"]:
  """The data of `completion_keys` of P groups of G, on the host."""
  count = math.prod(shape)
  prompts, members = np.indices(shape, np.int32).reshape(2, -1)
  padding = (0, (1 << count.bit_length()) - count)  # Few sizes to compile.
  prompts, members = np.pad(prompts, padding), np.pad(members, padding)
  keys = completion_keys(seed, round, prompts, members, evaluation=evaluation)
  data = sharding.to_host(jax.random.key_data(keys))
  return data[:count].reshape(*shape, 2)


class Settings(NamedTuple):
  """How the token of each row is chosen."""

  temperature: Floats  # [B]: 0 takes the most probable token.
  top_p: Floats  # [B]: 1 for all tokens.
  top_k: Ints  # [B]: 0 for all tokens.


class Needs(NamedTuple):
  """What any row asks of `sample`: static, as other work is not compiled."""

  tempers: bool = False  # A temperature other than 0 and 1.
  draws: bool = True  # A temperature above 0.
  greedy: bool = False  # A temperature of 0.
  truncates: bool = False  # A top-p or a top-k.
  top: int = 0  # The most probable tokens that are returned.

  @classmethod
  def of(cls, settings: Settings, top: int = 0) -> "Needs":
    """What rows of these settings, known to the host, ask for."""
    temperature, top_p, top_k = map(np.asarray, settings)
    greedy = bool(np.any(temperature == 0))
    return cls(
      tempers=bool(np.any((temperature != 0) & (temperature != 1))),
      draws=bool(np.any(temperature > 0)) or not greedy,
      greedy=greedy,
      truncates=bool(np.any((top_p < 1) | (top_k > 0))),
      top=top,
    )


class Choice(NamedTuple):
  """The token of each row, and log-probabilities in nats."""

  tokens: Int[Array, "B"]
  logprobs: Float[Array, "B"]
  top_ids: Int[Array, "B k"]  # The most probable tokens, in order.
  top_logprobs: Float[Array, "B k"]


def sample(
  logits: Float[Array, "B V"],
  keys: Key[Array, "B"],
  settings: Settings,
  needs: Needs,
) -> Choice:
  """A token per row, and its log-probability under the tempered policy.

  The token is where the cumulative distribution passes one uniform draw. With
  `top_k` above 0 only the k most probable tokens are drawn from; with `top_p`
  below 1 only the most probable of these that together reach `top_p` of their
  sum. Log-probabilities are still those of the whole distribution. Those of
  temperature 0, which takes the most probable token, are of temperature 1.
  """
  greedy = settings.temperature == 0
  logits = logits.astype(jnp.float32)
  if needs.tempers:
    logits /= jnp.where(greedy, 1.0, settings.temperature)[:, None]
  logprobs = jax.nn.log_softmax(logits)
  if needs.draws:
    probabilities = jnp.exp(logprobs)
    if needs.truncates:
      probabilities = truncated(probabilities, settings)
    uniform = jax.vmap(jax.random.uniform)(keys)
    tokens = inverse_cdf(probabilities, uniform)
  if needs.greedy:
    best = jnp.argmax(logprobs, axis=-1).astype(jnp.int32)
    tokens = jnp.where(greedy, best, tokens) if needs.draws else best
  chosen = jnp.take_along_axis(logprobs, tokens[:, None], axis=1)[:, 0]
  top, ids = jax.lax.top_k(logprobs, needs.top)
  return Choice(tokens, chosen, ids, top)


def truncated(
  probabilities: Float[Array, "B V"], settings: Settings
) -> Float[Array, "B V"]:
  """Zeroes the tokens that top-k and top-p leave out, in rows that have any."""
  few = most_probable(probabilities, settings.top_k)
  few = jnp.where(settings.top_k[:, None] > 0, few, probabilities)
  inner = nucleus(few, settings.top_p)
  return jnp.where(settings.top_p[:, None] < 1, inner, few)


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
  probabilities: Float[Array, "B V"], top_p: Float[Array, "B"] | float
) -> Float[Array, "B V"]:
  """Zeroes all but the most probable tokens that reach `top_p` of the sum."""
  wanted = top_p * probabilities.sum(axis=-1)
  return truncate(
    probabilities,
    lambda kept: jnp.where(kept, probabilities, 0.0).sum(axis=-1) >= wanted,
  )


def most_probable(
  probabilities: Float[Array, "B V"], top_k: Int[Array, "B"] | int
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
