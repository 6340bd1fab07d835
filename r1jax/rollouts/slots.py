"""Completions under way, one per slot, and the programs that go on with them.

Everything here runs on the devices, with the shapes of one engine; what the
host decides comes in as arguments.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from r1jax import ops
from r1jax.models import cache as caches
from r1jax.models import transformer
from r1jax.models.cache import Cache
from r1jax.models.config import ModelConfig
from r1jax.models.transformer import Transformer
from r1jax.models.weights import (
  logical_axes,
  to_compute_dtype,
  used_axes,
)
from r1jax.parallel import reshard, sharding
from r1jax.rollouts.sampling import completion_keys, sample, token_keys
from r1jax.types import FINISH_LENGTH, FINISH_STOP, Params


@chex.dataclass(frozen=True)
class Slots:
  """Completions under way, one per slot; a slot that has finished is idle."""

  cache: Cache  # What follows the common prefix: prompt and completion.
  token: Int[Array, "B"]  # The last one, not yet in the cache.
  count: Int[Array, "B"]  # Tokens sampled so far.
  limit: Int[Array, "B"]  # Tokens that may be sampled.
  finish: Int[Array, "B"]  # 0 while it goes on.
  keys: Key[Array, "B"]


@chex.dataclass(frozen=True)
class Record:
  """What one call of `decode` sampled; every device holds all of it."""

  tokens: Int[Array, "B n"]  # Of each row the first ones, up to its `count`.
  logprobs: Float[Array, "B n"]
  experts: Int[Array, "B n L k"] | None  # That read the token before.
  count: Int[Array, "B"]  # Of the whole completion.
  finish: Int[Array, "B"]
  steps: Int[Array, ""]  # That were taken, `n` unless all slots ended.


class Sampling(NamedTuple):
  """How tokens are sampled; static."""

  mesh: Mesh
  vocab_size: int
  eos_ids: tuple[int, ...]
  steps: int  # Of one call of `decode`.
  temperature: float
  top_p: float
  top_k: int
  record_experts: bool


@functools.partial(
  jax.jit,
  static_argnames=("model", "count", "size", "slots_per_prompt", "prompt_size"),
)
def empty(
  model: Transformer,
  count: int,
  size: int,
  slots_per_prompt: int = 1,
  prompt_size: int = 0,
) -> Slots:
  """`count` idle slots, with room for `size` tokens.

  Where `slots_per_prompt` of them share a prompt, it has room of its own.
  """
  prompts = count // slots_per_prompt if slots_per_prompt > 1 else 0
  cache = caches.empty(
    model.config, count, size, prompts=prompts, prompt_size=prompt_size
  )
  zeros = jnp.zeros(count, jnp.int32)
  return split(
    Slots(
      cache=cache.replace(prefix=()),
      token=zeros,
      count=zeros,
      limit=zeros,
      finish=zeros + FINISH_LENGTH,
      keys=jax.random.wrap_key_data(jnp.zeros((count, 2), jnp.uint32)),
    )
  )


def split(slots: Slots) -> Slots:
  """The slots as every program takes and leaves them on the mesh."""
  rows = lambda x: sharding.shard_constraint(x, "rows")
  keys = jax.random.wrap_key_data(
    sharding.shard_constraint(jax.random.key_data(slots.keys), "rows", None)
  )
  cache = caches.shard_constraint(slots.cache)
  names = ("token", "count", "limit", "finish")
  others = {name: rows(slots[name]) for name in names}
  return slots.replace(cache=cache, keys=keys, **others)


def cast(config: ModelConfig, params: Params) -> Params:
  """The weights that decoding reads, in the compute dtype."""
  used = {name: w for name, w in params.items() if name != "mtp"}
  return to_compute_dtype(used, config)


@functools.partial(jax.jit, static_argnames=("model", "before", "after"))
def prepare(
  model: Transformer, params: Params, before: Mesh | None, after: Mesh
) -> Params:
  """The weights as decoding reads them: apart, and in the compute dtype.

  They come from the mesh `before`, which splits them as training does, or from
  wherever they lie if it is None, to the mesh `after`, of which `tensor` and
  `expert` alone split them: no token waits for weights to be gathered.
  """
  config, used = model.config, cast(model.config, params)
  if before is None:
    used = sharding.tree_shard_constraint(used, used_axes(config))
  else:
    used = jax.tree.map(
      reshard.reshard,
      used,
      sharding.tree_shardings(before, logical_axes(config), used),
      sharding.tree_shardings(after, used_axes(config), used),
    )
  return transformer.unstack(model, used)


@functools.partial(jax.jit, static_argnames=("model", "record_experts"))
def read_prefix(
  model: Transformer,
  params: Params,
  tokens: Int[Array, "T"],
  *,
  record_experts: bool,
) -> tuple[caches.Buffers, Int[Array, "1 T L k"] | None]:
  """What the tokens that all prompts begin with leave in the cache."""
  cache = caches.empty(model.config, 1, len(tokens))
  if not len(tokens):
    return caches.as_prefix(cache), None
  made = transformer.forward(
    model, params, transformer.pack_rows(tokens[None]), cache=cache
  )
  return caches.as_prefix(made.cache), used(made.experts, record_experts)


@functools.partial(jax.jit, static_argnames=("model", "record_experts"))
def read_prompts(
  model: Transformer,
  params: Params,
  prefix: caches.Buffers,
  own: Int[Array, "B T"],
  *,
  record_experts: bool,
) -> tuple[Cache, Int[Array, "B T L k"] | None]:
  """A cache of what follows the prefix in some prompts."""
  cache = caches.empty(model.config, *own.shape, prefix=prefix)
  made = transformer.forward(
    model, params, transformer.pack_rows(own), cache=cache
  )
  cache = caches.shard_constraint(made.cache.replace(prefix=()))
  return cache, used(made.experts, record_experts)


@jax.jit
def join(parts: list[Cache]) -> Cache:
  """The rows of several caches as those of one."""
  return caches.shard_constraint(caches.join(parts))


def used(
  experts: Int[Array, "L B T k"], record: bool
) -> Int[Array, "B T L k"] | None:
  """The experts of each token as they are recorded; None if they are not."""
  return jnp.moveaxis(experts, 0, 2).astype(jnp.int16) if record else None


@functools.partial(jax.jit, static_argnames="size")
def grow(cache: Cache, size: int) -> Cache:
  """The cache with room for `size` tokens in each row."""
  return caches.shard_constraint(caches.grow(cache, size))


@functools.partial(
  jax.jit, static_argnames="evaluation", donate_argnames="slots"
)
def fill(
  slots: Slots,
  prompts: Cache,
  slot: Int[Array, "M"],
  source: Int[Array, "M"],
  member: Int[Array, "M"],
  last: Int[Array, "M"],
  lengths: Int[Array, "M"],
  limit: Int[Array, "M"],
  *,
  seed: Int[Array, ""] | int,
  round: Int[Array, ""] | int,
  evaluation: bool,
) -> Slots:
  """Begins a completion in each `slot`; one beyond the last is dropped.

  It is completion `member` of prompt `source`, whose own part has `lengths`
  tokens and ends with `last`.
  """
  put = lambda old, new: old.at[slot].set(new, mode="drop")
  keys = completion_keys(seed, round, source, member, evaluation=evaluation)
  keys = put(jax.random.key_data(slots.keys), jax.random.key_data(keys))
  cache = caches.copy_prompt(slots.cache, slot, prompts, source, lengths - 1)
  return split(
    Slots(
      cache=cache,
      token=put(slots.token, last),
      count=put(slots.count, 0),
      limit=put(slots.limit, limit),
      finish=put(slots.finish, 0),
      keys=jax.random.wrap_key_data(keys),
    )
  )


@functools.partial(
  jax.jit, static_argnames=("model", "sampling"), donate_argnames="slots"
)
def decode(
  model: Transformer,
  sampling: Sampling,
  params: Params,
  prefix: caches.Buffers,
  slots: Slots,
) -> tuple[Slots, Record]:
  """`sampling.steps` more tokens in every slot, or up to its end."""
  shape = (len(slots.token), sampling.steps)
  config, experts = model.config, None
  if sampling.record_experts:
    per_token = (config.num_moe_layers, config.experts.per_token)
    experts = jnp.zeros((*shape, *per_token), jnp.int16)
  sampled = jnp.zeros(shape, jnp.int32), jnp.zeros(shape), experts

  def one(carry):
    i, slots, sampled = carry
    slots, new = step(model, sampling, params, prefix, slots)
    sampled = jax.tree.map(lambda x, y: x.at[:, i].set(y), sampled, new)
    return i + 1, slots, sampled

  with jax.named_scope("decoding"):
    steps, slots, (tokens, logprobs, experts) = jax.lax.while_loop(
      lambda carry: (carry[0] < sampling.steps) & jnp.any(carry[1].finish == 0),
      one,
      (jnp.zeros((), jnp.int32), slots, sampled),
    )
  record = Record(
    tokens=tokens,
    logprobs=logprobs,
    experts=experts,
    count=slots.count,
    finish=slots.finish,
    steps=steps,
  )
  everywhere = lambda x: sharding.shard_constraint(x, *[None] * x.ndim)
  return split(slots), jax.tree.map(everywhere, record)


def step(
  model: Transformer,
  sampling: Sampling,
  params: Params,
  prefix: caches.Buffers,
  slots: Slots,
) -> tuple[Slots, tuple]:
  """One more token in every slot that is not idle.

  Also returns the tokens [B], their log-probabilities and, if they are
  recorded, the experts [B, L, k] that made them; of idle slots, anything.
  """
  made = transformer.forward(
    model,
    params,
    transformer.pack_rows(slots.token[:, None]),
    cache=slots.cache.replace(prefix=prefix),
  )
  logits = transformer.logits(params, made.hidden[:, 0])
  # From here on each device has whole rows: logits are gathered, no weights.
  logits = sharding.shard_constraint(logits, "rows", "vocab")
  logits = sharding.shard_constraint(logits, "rows", None)
  logits = ops.mask_padding(logits, sampling.vocab_size)
  token, logprob = sample(
    logits,
    token_keys(slots.keys, slots.count),
    temperature=sampling.temperature,
    top_p=sampling.top_p,
    top_k=sampling.top_k,
  )
  active = slots.finish == 0
  count = slots.count + active
  eos = jnp.array(sampling.eos_ids, jnp.int32)
  stopped = jnp.any(token[:, None] == eos, axis=-1)
  finish = jnp.where(count >= slots.limit, FINISH_LENGTH, 0)
  finish = jnp.where(stopped, FINISH_STOP, finish)
  experts = used(made.experts, sampling.record_experts)
  slots = slots.replace(
    cache=made.cache.replace(prefix=(), lengths=slots.cache.lengths + active),
    token=jnp.where(active, token, slots.token),
    count=count,
    finish=jnp.where(active, finish, slots.finish),
  )
  return split(slots), (
    token,
    logprob,
    None if experts is None else experts[:, 0],
  )
