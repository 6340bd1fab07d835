"""One completion at a time, token by token, for whoever reads along.

A conversation grows, so a stream keeps the cache of the last one: what the next
prompt has in common with it is not read again. The next token is under way
while the last one is shown.
"""

import functools
from collections.abc import Collection, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from r1jax import ops
from r1jax.models import cache as caches
from r1jax.models import transformer
from r1jax.models.cache import Cache
from r1jax.models.transformer import Transformer
from r1jax.rollouts.sampling import completion_keys, sample, token_keys
from r1jax.types import Params

SIZE, GROWTH = 1024, 4  # Tokens that a cache holds at first; how it grows.
WIDTHS = 16, 64, 256  # Tokens that are read at once, padding included.


class Stream:
  """A model that goes on from one prompt after another."""

  def __init__(
    self,
    model: Transformer,
    params: Params,
    *,
    vocab_size: int,
    stop_ids: Collection[int],
    temperature: float,
    top_p: float = 1.0,
    seed: int = 0,
  ):
    """Nothing is computed yet.

    Args:
      model: its architecture.
      params: its weights; those of NumPy are put on the device, once.
      vocab_size: ids that exist; the model may have logits for more.
      stop_ids: any of them ends a completion.
      temperature: of sampling; 0 takes the most probable token.
      top_p: see `sampling.sample`.
      seed: of everything sampled.
    """
    if temperature < 0:
      raise ValueError(f"temperature {temperature} is below 0")
    if not 0 < top_p <= 1:
      raise ValueError(f"top_p {top_p} is not within (0, 1]")
    self._model, self._seed = model, seed
    self._params = jax.device_put(params)
    self._stop_ids = frozenset(stop_ids)
    self._sampling = dict(
      vocab_size=vocab_size, temperature=temperature, top_p=top_p
    )
    self._cache, self._size = None, 0
    self._held: list[int] = []  # The ids that the cache remembers.

  def complete(
    self, prompt: Sequence[int], *, max_tokens: int, number: int = 0
  ) -> Iterator[int]:
    """The ids that follow `prompt`, as they come; the one that stops included.

    What is sampled depends on the prompt, the seed and the `number` of the
    completion. It ends with the longest text that the model was made for, too,
    and may be left at any token.
    """
    if not prompt:
      raise ValueError("the prompt is empty")
    longest = self._model.config.max_length
    if len(prompt) >= longest:
      raise ValueError(
        f"the prompt has {len(prompt)} tokens, and the model was made for "
        f"texts of {longest}"
      )
    max_tokens = min(max_tokens, longest - len(prompt))
    zero = np.zeros(1, np.int32)
    keys = completion_keys(self._seed, number, zero, zero)
    self._remember(prompt[:-1])
    token, chosen = np.array(prompt[-1:], np.int32), prompt[-1]
    for position in range(max_tokens):
      if len(self._held) >= self._size:
        self._remember(self._held)
      # The next step begins before the last one's token is looked at.
      following = self._advance(token, keys, position)
      if position:
        chosen = int(token[0])
      self._held.append(chosen)
      if position:
        yield chosen
        if chosen in self._stop_ids:
          return
      token = following
    yield int(token[0])

  def _advance(self, token, keys, position):
    """Puts `token` into the cache; the one that follows it."""
    cache, self._cache = self._cache, None  # Its memory is given away.
    token, self._cache = step(
      self._model,
      self._params,
      cache,
      token,
      keys,
      np.array([position], np.int32),
      **self._sampling,
    )
    return token

  def _remember(self, known: Sequence[int]) -> None:
    """Makes the cache that of `known`; reads what it does not hold yet."""
    same = 0
    if self._cache is None or len(known) >= self._size:
      self._size = SIZE
      while len(known) >= self._size:
        self._size *= GROWTH
      cache = caches.empty(self._model.config, 1, self._size)
      self._cache = cache.replace(prefix=())
    else:
      for ours, theirs in zip(self._held, known, strict=False):
        if ours != theirs:
          break
        same += 1
    self._held = [*known[:same]]
    self._cache = self._cache.replace(lengths=jnp.full(1, same, jnp.int32))
    while len(self._held) < len(known):
      part = known[len(self._held) :][: WIDTHS[-1]]
      width = min(width for width in WIDTHS if width >= len(part))
      tokens = np.zeros((1, width), np.int32)
      tokens[0, : len(part)] = part
      cache, self._cache = self._cache, None
      self._cache = read(self._model, self._params, cache, tokens, len(part))
      self._held += part


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def read(
  model: Transformer,
  params: Params,
  cache: Cache,
  tokens: Int[Array, "1 T"],
  count: int | Int[Array, ""],
) -> Cache:
  """The cache after the first `count` of `tokens`; the others are padding."""
  # What lies beyond the lengths is written over.
  lengths = cache.lengths + count
  return extend(model, params, cache, tokens)[1].replace(lengths=lengths)


@functools.partial(
  jax.jit,
  static_argnames=("model", "vocab_size", "temperature", "top_p"),
  donate_argnames="cache",
)
def step(
  model: Transformer,
  params: Params,
  cache: Cache,
  token: Int[Array, "1"],
  keys: Key[Array, "1"],
  position: Int[Array, "1"],
  *,
  vocab_size: int,
  temperature: float,
  top_p: float,
) -> tuple[Int[Array, "1"], Cache]:
  """The token that follows `token`, and the cache that holds the latter."""
  hidden, cache = extend(model, params, cache, token[:, None])
  logits = transformer.logits(params, hidden[:, 0])
  logits = ops.mask_padding(logits, vocab_size)
  token, _ = sample(
    logits, token_keys(keys, position), temperature=temperature, top_p=top_p
  )
  return token, cache


def extend(
  model: Transformer, params: Params, cache: Cache, tokens: Int[Array, "1 T"]
) -> tuple[Float[Array, "1 T D"], Cache]:
  """Hidden states of `tokens`, and the longer cache.

  Outside, the cache goes without its prefix, whose empty arrays nothing could
  take over.
  """
  prefix = caches.empty(model.config, 1, 1).prefix
  hidden, cache = transformer.extend(
    model, params, tokens, cache.replace(prefix=prefix)
  )
  return hidden, cache.replace(prefix=())
