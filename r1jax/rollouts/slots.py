"""The device programs of the engine: they read prompts and decode tokens.

Only caches stay on the devices between two calls. All else that belongs to a
slot is a few numbers, which the host keeps (`Slots`) and passes to each call.
"""

import functools
from typing import NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Integer, UInt32

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
from r1jax.rollouts.replay import dtype_of
from r1jax.rollouts.sampling import Needs, Settings, sample, token_keys
from r1jax.types import FINISH_LENGTH, FINISH_STOP, Floats, Ints, Params

Keys = UInt32[Array, "B 2"] | UInt32[np.ndarray, "B 2"] | jax.ShapeDtypeStruct

Tree = TypeVar("Tree")

STOP_IDS = 16  # Ids that may end a completion.


@chex.dataclass(frozen=True)
class Slots:
  """The completion in each slot, without its cache; NumPy on the host."""

  token: Ints  # [B]: the last one, not yet in the cache.
  cached: Ints  # [B]: tokens that the slot's row of the cache holds.
  count: Ints  # [B]: tokens of the completion so far.
  limit: Ints  # [B]: tokens that it may have.
  finish: Ints  # [B]: 0 while it goes on.
  keys: Keys
  settings: Settings
  stop_ids: Ints  # [B, STOP_IDS]: padded with -1, which is no id.
  # Tokens of the next steps that are given instead of sampled.
  forced: Ints  # [B, n]
  num_forced: Ints  # [B]


def idle_slots(count: int, steps: int) -> Slots:
  """Slots without completions, for `steps` tokens in a call of `decode`."""
  zeros = lambda *shape: np.zeros((count, *shape), np.int32)
  return Slots(
    token=zeros(),
    cached=zeros(),
    count=zeros(),
    limit=zeros(),
    finish=zeros() + FINISH_LENGTH,
    keys=np.zeros((count, 2), np.uint32),
    settings=Settings(
      temperature=np.ones(count, np.float32),
      top_p=np.ones(count, np.float32),
      top_k=zeros(),
    ),
    stop_ids=zeros(STOP_IDS) - 1,
    forced=zeros(steps),
    num_forced=zeros(),
  )


def to_table(slots: Slots) -> Int[np.ndarray, "B K"]:
  """All fields side by side, as bits: one copy to the devices, not a dozen."""
  columns = [
    x.view(np.int32).reshape(len(x), -1) for x in jax.tree.leaves(slots)
  ]
  return np.concatenate(columns, axis=1)


def from_table(table: Int[Array, "B K"], steps: int) -> Slots:
  """The slots of `to_table`, for `steps` tokens in a call of `decode`."""
  fields, tree = jax.tree.flatten(idle_slots(len(table), steps))
  ends = np.cumsum([x[0].size for x in fields])
  columns = jnp.split(table, ends[:-1], axis=1)
  values = [
    jax.lax.bitcast_convert_type(column.reshape(x.shape), x.dtype)
    for column, x in zip(columns, fields)
  ]
  return tree.unflatten(values)


@chex.dataclass(frozen=True)
class Record:
  """The result of one call of `decode`; every device holds all of it."""

  tokens: Ints  # [B, n]: Of each row the first ones, up to its `count`.
  logprobs: Floats  # [B, n]: Of forced tokens, anything.
  top_ids: Ints  # [B, n, k]: The most probable tokens, in order.
  top_logprobs: Floats  # [B, n, k]
  count: Ints  # [B]: of the whole completion.
  finish: Ints  # [B]
  steps: Ints  # That were taken, `n` unless all slots ended.


class Sampling(NamedTuple):
  """How tokens are sampled; static."""

  mesh: Mesh
  vocab_size: int
  steps: int  # Of one call of `decode`.
  record_experts: bool
  needs: Needs = Needs()


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
) -> Cache:
  """The cache of `count` slots, with room for `size` tokens in each.

  Where `slots_per_prompt` of them share a prompt, it has room of its own.
  """
  prompts = count // slots_per_prompt if slots_per_prompt > 1 else 0
  cache = caches.empty(
    model.config, count, size, prompts=prompts, prompt_size=prompt_size
  )
  return caches.shard_constraint(cache.replace(prefix=()))


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
) -> tuple[
  caches.Buffers, Float[Array, "1 T D"], Integer[Array, "1 T L k"] | None
]:
  """The cache of the tokens that all prompts begin with, and their states."""
  cache = caches.empty(model.config, 1, len(tokens))
  if not len(tokens):
    hidden = jnp.zeros((1, 0, model.config.width), model.config.compute_dtype)
    return caches.as_prefix(cache), hidden, None
  made = transformer.forward(
    model, params, transformer.pack_rows(tokens[None]), cache=cache
  )
  experts = used(model.config, made.experts) if record_experts else None
  return caches.as_prefix(made.cache), made.hidden, experts


@functools.partial(
  jax.jit, static_argnames=("model", "record_experts", "keep_hidden")
)
def read_prompts(
  model: Transformer,
  params: Params,
  prefix: caches.Buffers,
  own: Int[Array, "B T"],
  prefix_experts: Integer[Array, "1 T0 L k"] | None = None,
  *,
  record_experts: bool,
  keep_hidden: bool = False,
) -> tuple[
  Cache, Float[Array, "B T D"] | None, Integer[Array, "B T1 L k"] | None
]:
  """A cache of what follows the prefix in some prompts, and its states.

  The states are for `prompt_scores`, and None without `keep_hidden`. Experts
  that are recorded are those of prefix and prompt, split by rows.
  """
  cache = caches.empty(model.config, *own.shape, prefix=prefix)
  made = transformer.forward(
    model, params, transformer.pack_rows(own), cache=cache
  )
  cache = caches.shard_constraint(made.cache.replace(prefix=()))
  hidden, experts = made.hidden if keep_hidden else None, None
  if record_experts:
    experts = used(model.config, made.experts)
    if prefix_experts is not None:
      shape = (len(own), *prefix_experts.shape[1:])
      before = jnp.broadcast_to(prefix_experts, shape)
      experts = jnp.concatenate([before, experts], axis=1)
    experts = sharding.shard_constraint(experts, "rows", None, None, None)
  return cache, hidden, experts


def used(
  config: ModelConfig, experts: Int[Array, "L B T k"]
) -> Integer[Array, "B T L k"]:
  """The experts of each token as they are recorded."""
  return jnp.moveaxis(experts, 0, 2).astype(dtype_of(config))


@functools.partial(jax.jit, static_argnames=("size", "prompt_size"))
def grow(cache: Cache, size: int, prompt_size: int = 0) -> Cache:
  """The cache with another room in each row, and in each shared prompt."""
  return caches.shard_constraint(caches.grow(cache, size, prompt_size))


@functools.partial(jax.jit, donate_argnames="cache")
def fill(
  cache: Cache,
  prompts: Cache,
  slot: Int[Array, "M"],
  source: Int[Array, "M"],
  lengths: Int[Array, "M"],
) -> Cache:
  """Each `slot` holds the first `lengths` tokens of a prompt, and no others.

  `source` are rows of `prompts`. Slots beyond the last are dropped.
  """
  return caches.shard_constraint(
    caches.copy_prompt(cache, slot, prompts, source, lengths)
  )


@functools.partial(
  jax.jit, static_argnames=("model", "sampling"), donate_argnames="cache"
)
def decode(
  model: Transformer,
  sampling: Sampling,
  params: Params,
  prefix: caches.Buffers,
  cache: Cache,
  table: Int[Array, "B K"],
) -> tuple[Cache, Record, Integer[Array, "B n L k"] | None]:
  """`sampling.steps` more tokens in every slot, or up to its end.

  `table` holds the slots; see `to_table`. Experts that are recorded stay with
  their slots on the devices: those that processed the token before each token.
  """
  config, experts = model.config, None
  shape = (len(table), sampling.steps)
  if sampling.record_experts:
    per_token = (config.num_moe_layers, config.experts.per_token)
    experts = jnp.zeros((*shape, *per_token), dtype_of(config))
  top = (*shape, sampling.needs.top)
  zeros = lambda shape, dtype: jnp.zeros(shape, dtype)
  results = (
    zeros(shape, jnp.int32),
    zeros(shape, jnp.float32),
    zeros(top, jnp.int32),
    zeros(top, jnp.float32),
    experts,
  )
  slots = by_row(from_table(table, sampling.steps))
  cache = cache.replace(lengths=slots.cached)

  def one(carry):
    i, cache, slots, results = carry
    cache, slots, new = step(model, sampling, params, prefix, cache, slots, i)
    results = jax.tree.map(lambda x, y: x.at[:, i].set(y), results, new)
    return i + 1, cache, slots, results

  with jax.named_scope("decoding"):
    steps, cache, slots, results = jax.lax.while_loop(
      lambda carry: (carry[0] < sampling.steps) & jnp.any(carry[2].finish == 0),
      one,
      (jnp.zeros((), jnp.int32), cache, slots, results),
    )
  tokens, logprobs, top_ids, top_logprobs, experts = results
  record = Record(
    tokens=tokens,
    logprobs=logprobs,
    top_ids=top_ids,
    top_logprobs=top_logprobs,
    count=slots.count,
    finish=slots.finish,
    steps=steps,
  )
  everywhere = lambda x: sharding.shard_constraint(x, *[None] * x.ndim)
  record, experts = jax.tree.map(everywhere, record), by_row(experts)
  return caches.shard_constraint(cache), record, experts


def step(
  model: Transformer,
  sampling: Sampling,
  params: Params,
  prefix: caches.Buffers,
  cache: Cache,
  slots: Slots,
  i: Int[Array, ""],
) -> tuple[Cache, Slots, tuple]:
  """One more token, step `i` of a call, in every slot that is not idle.

  Also returns what `decode` records of it; of idle slots, anything.
  """
  made = transformer.forward(
    model,
    params,
    transformer.pack_rows(slots.token[:, None]),
    cache=cache.replace(prefix=prefix),
  )
  logits = transformer.logits(params, made.hidden[:, 0])
  # From here on each device has whole rows: logits are gathered, no weights.
  logits = sharding.shard_constraint(logits, "rows", "vocab")
  logits = sharding.shard_constraint(logits, "rows", None)
  logits = ops.mask_padding(logits, sampling.vocab_size)
  keys = token_keys(jax.random.wrap_key_data(slots.keys), slots.count)
  choice = sample(logits, keys, slots.settings, sampling.needs)
  is_forced = i < slots.num_forced
  token = jnp.where(is_forced, slots.forced[:, i], choice.tokens)
  active = slots.finish == 0
  count = slots.count + active
  stopped = jnp.any(token[:, None] == slots.stop_ids, axis=-1) & ~is_forced
  finish = jnp.where(count >= slots.limit, FINISH_LENGTH, 0)
  finish = jnp.where(stopped, FINISH_STOP, finish)
  slots = slots.replace(
    token=jnp.where(active, token, slots.token),
    count=count,
    finish=jnp.where(active, finish, slots.finish),
  )
  cache = made.cache.replace(prefix=(), lengths=cache.lengths + active)
  experts = None
  if sampling.record_experts:
    experts = used(model.config, made.experts)[:, 0]
  return (
    caches.shard_constraint(cache),
    by_row(slots),
    (
      token,
      choice.logprobs,
      choice.top_ids,
      choice.top_logprobs,
      experts,
    ),
  )


def by_row(tree: Tree) -> Tree:
  """What belongs to slots, split over the mesh like the rows of the cache."""
  split = lambda x: sharding.shard_constraint(x, "rows", *[None] * (x.ndim - 1))
  return jax.tree.map(split, tree)
