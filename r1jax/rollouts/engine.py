"""The rollout engine: a fixed number of slots, refilled as completions finish.

A prompt is read once and its cache copied into the slots of its G completions;
the tokens with which all prompts begin (the template) are read once per call
and are never copied. Every few tokens the host looks which slots have finished,
takes their completions and fills them with the next. What it decides depends on
lengths and finish flags alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from r1jax import sharding
from r1jax.models import cache as caches
from r1jax.models import transformer
from r1jax.models.cache import Cache, empty_cache
from r1jax.models.logprobs import mask_padding
from r1jax.models.transformer import Transformer
from r1jax.rollouts.sampling import completion_keys, sample, token_keys
from r1jax.types import FINISH_LENGTH, FINISH_STOP, Params, Rollout, Tokenizer

PREFILL = 16  # Prompts that are read at once.
REFILL = 32  # Slots that are filled at once.


@chex.dataclass(frozen=True)
class Slots:
  """Completions under way, one per slot."""

  cache: Cache  # What follows the common prefix: own prompt and completion.
  token: Int[Array, "B"]  # The last one, not yet in the cache.
  count: Int[Array, "B"]  # Tokens sampled so far.
  active: Bool[Array, "B"]
  finish: Int[Array, "B"]
  keys: Key[Array, "B"]
  tokens: Int[Array, "B Tc"]
  logprobs: Float[Array, "B Tc"]


@dataclasses.dataclass(frozen=True)
class Engine:
  """Samples completions; make one with `make_engine`."""

  mesh: Mesh
  prefix: tuple[int, ...]
  num_slots: int
  prompt_tokens: int
  max_tokens: int
  empty: Callable[[], Slots]
  read_prefix: Callable
  read_prompts: Callable
  fill: Callable
  decode: Callable

  def __call__(
    self,
    params: Params,
    prompts: Sequence[Sequence[int]],
    group_size: int,
    *,
    seed: int,
    round: int,
    progress: Callable[[int, int], None] = lambda done, tokens: None,
  ) -> Rollout:
    """`group_size` completions of each prompt.

    `progress` is called now and then with the number of finished completions
    and of sampled tokens. Raises ValueError for a prompt that is longer than
    the window, or does not begin with the prefix.
    """
    own, lengths = self._own_tokens(prompts)
    prefix = self.read_prefix(params)
    read = self._read(params, prefix, own)
    requests = [(p, g) for p in range(len(prompts)) for g in range(group_size)]
    shape = (len(prompts), group_size, self.max_tokens)
    out = Rollout(
      prompts=np.concatenate(
        [np.tile(np.int32(self.prefix), (len(own), 1)), own], axis=1
      ),
      prompt_lengths=lengths + len(self.prefix),
      completions=np.zeros(shape, np.int32),
      lengths=np.zeros(shape[:2], np.int32),
      finish=np.zeros(shape[:2], np.int32),
      logprobs=np.zeros(shape, np.float32),
    )
    slots, holding, waiting = self.empty(), {}, iter(requests)
    done = tokens = 0
    while True:
      slots = self._refill(
        slots, read, own, lengths, holding, waiting, seed, round
      )
      if not holding:
        return out
      slots = self.decode(params, prefix, slots)
      active, count = jax.device_get((slots.active, slots.count))
      ended = [slot for slot in holding if not active[slot]]
      if not ended:
        continue
      host = jax.device_get((slots.tokens, slots.logprobs, slots.finish))
      for slot in ended:
        where = holding.pop(slot)
        out.completions[where], out.logprobs[where] = (
          host[0][slot],
          host[1][slot],
        )
        out.finish[where], out.lengths[where] = host[2][slot], count[slot]
        done, tokens = done + 1, tokens + int(count[slot])
      progress(done, tokens)

  def _own_tokens(self, prompts) -> tuple[np.ndarray, np.ndarray]:
    """What follows the prefix in each prompt [P, Tq], and its lengths [P]."""
    start = len(self.prefix)
    own = np.zeros((len(prompts), self.prompt_tokens), np.int32)
    lengths = np.zeros(len(prompts), np.int32)
    for row, prompt in enumerate(prompts):
      rest = prompt[start:]
      if tuple(prompt[:start]) != self.prefix or not rest:
        raise ValueError(f"prompt {row} does not begin with the template")
      if len(rest) > self.prompt_tokens:
        raise ValueError(
          f"prompt {row} has {len(rest)} tokens beyond the template, and the "
          f"window prompt_tokens is {self.prompt_tokens}; raise it, or filter "
          "the dataset"
        )
      own[row, : len(rest)] = rest
      lengths[row] = len(rest)
    return own, lengths

  def _read(self, params, prefix, own):
    """The cached rows of all prompts."""
    parts = []
    for start in range(0, len(own), PREFILL):
      part = own[start : start + PREFILL]
      part = np.pad(part, ((0, PREFILL - len(part)), (0, 0)))
      parts.append(self.read_prompts(params, prefix, part))
    return caches.join(parts)

  def _refill(self, slots, read, own, lengths, holding, waiting, seed, round):
    """Puts waiting requests into free slots, `REFILL` at a time."""
    free = [slot for slot in range(self.num_slots) if slot not in holding]
    taken = list(zip(free, waiting, strict=False))
    holding |= taken
    last = own[np.arange(len(own)), lengths - 1]
    for start in range(0, len(taken), REFILL):
      part = taken[start : start + REFILL]
      # Slots beyond the last are dropped.
      slot = np.full(REFILL, self.num_slots, np.int32)
      source, member = np.zeros((2, REFILL), np.int32)
      for i, (where, (p, g)) in enumerate(part):
        slot[i], source[i], member[i] = where, p, g
      slots = self.fill(
        slots,
        read,
        slot,
        source,
        last[source],
        lengths[source],
        completion_keys(seed, round, jnp.array(source), jnp.array(member)),
      )
    return slots


def make_engine(
  model: Transformer,
  tokenizer: Tokenizer,
  mesh: Mesh,
  prefix: Sequence[int],
  *,
  num_slots: int,
  decode_steps: int,
  prompt_tokens: int,
  max_tokens: int,
  temperature: float,
  top_p: float = 1.0,
) -> Engine:
  """An engine for prompts that all begin with `prefix`.

  Args:
    model: its architecture.
    tokenizer: says which ids exist, and which end a completion.
    mesh: the slots are split over its `data` axis.
    prefix: token ids; may be empty.
    num_slots: completions under way at once.
    decode_steps: tokens between two looks of the host.
    prompt_tokens: window for what follows the prefix in a prompt.
    max_tokens: of a completion, EOS included.
    temperature: of sampling.
    top_p: see `sampling.sample`; anything below 1 is for evaluation only.
  """
  if temperature <= 0:
    raise ValueError(f"temperature {temperature} must be above 0")
  if not 0 < top_p <= 1:
    raise ValueError(f"top_p {top_p} is not within (0, 1]")
  c = model.config
  eos = jnp.array(tokenizer.eos_ids)
  prefix = tuple(int(i) for i in prefix)

  def empty() -> Slots:
    def zeros(*shape, dtype=np.int32):
      return sharding.assemble(mesh, np.zeros((num_slots, *shape), dtype))

    cache = empty_cache(c, num_slots, prompt_tokens + max_tokens)
    return Slots(
      cache=sharding.assemble(mesh, cache.replace(prefix=())),
      token=zeros(),
      count=zeros(),
      active=zeros(dtype=bool),
      finish=zeros(),
      keys=jax.random.wrap_key_data(zeros(2, dtype=np.uint32)),
      tokens=zeros(max_tokens),
      logprobs=zeros(max_tokens, dtype=np.float32),
    )

  @jax.jit
  def read_prefix(params):
    cache = empty_cache(c, 1, len(prefix))
    if prefix:
      tokens = jnp.array(prefix, jnp.int32)[None]
      _, cache = transformer.extend(model, params, tokens, cache)
    return caches.as_prefix(cache)

  @jax.jit
  def read_prompts(params, prefix_cache, own):
    cache = empty_cache(c, own.shape[0], prompt_tokens, prefix_cache)
    return transformer.extend(model, params, own, cache)[1].rows

  @functools.partial(jax.jit, donate_argnames="slots")
  def fill(slots, prompts, slot, source, last, lengths, keys):
    put = lambda old, new: old.at[slot].set(new, mode="drop")
    keys = put(jax.random.key_data(slots.keys), jax.random.key_data(keys))
    rows = caches.copy(slots.cache.rows, slot, prompts, source)
    lengths = put(slots.cache.lengths, lengths - 1)
    return slots.replace(
      cache=Cache(prefix=(), rows=rows, lengths=lengths),
      token=put(slots.token, last),
      count=put(slots.count, 0),
      finish=put(slots.finish, 0),
      active=put(slots.active, True),
      keys=jax.random.wrap_key_data(keys),
      tokens=put(slots.tokens, 0),
      logprobs=put(slots.logprobs, 0.0),
    )

  def step(params, prefix_cache, slots):
    cache = slots.cache.replace(prefix=prefix_cache)
    hidden, cache = transformer.extend(
      model, params, slots.token[:, None], cache
    )
    logits = mask_padding(
      transformer.logits(model, params, hidden[:, 0]), tokenizer.vocab_size
    )
    token, logprob = sample(
      logits,
      token_keys(slots.keys, slots.count),
      temperature=temperature,
      top_p=top_p,
    )
    row, active = jnp.arange(num_slots), slots.active
    at = jnp.where(active, slots.count, max_tokens)  # Dropped if idle.
    count = slots.count + active
    stopped = jnp.any(token[:, None] == eos, axis=-1)
    finish = jnp.where(
      stopped,
      FINISH_STOP,
      jnp.where(count >= max_tokens, FINISH_LENGTH, 0),
    )
    finish = jnp.where(active, finish, slots.finish)
    return slots.replace(
      cache=cache.replace(prefix=(), lengths=slots.cache.lengths + active),
      token=jnp.where(active, token, slots.token),
      count=count,
      active=active & (finish == 0),
      finish=finish,
      tokens=slots.tokens.at[row, at].set(token, mode="drop"),
      logprobs=slots.logprobs.at[row, at].set(logprob, mode="drop"),
    )

  @functools.partial(jax.jit, donate_argnames="slots")
  def decode(params, prefix_cache, slots):
    return jax.lax.while_loop(
      lambda carry: (carry[0] < decode_steps) & jnp.any(carry[1].active),
      lambda carry: (carry[0] + 1, step(params, prefix_cache, carry[1])),
      (0, slots),
    )[1]

  return Engine(
    mesh=mesh,
    prefix=prefix,
    num_slots=num_slots,
    prompt_tokens=prompt_tokens,
    max_tokens=max_tokens,
    empty=empty,
    read_prefix=read_prefix,
    read_prompts=read_prompts,
    fill=fill,
    decode=decode,
  )
