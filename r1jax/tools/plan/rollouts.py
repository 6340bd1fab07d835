"""The programs of rollouts, with shapes instead of arrays; see `programs`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from r1jax.models import cache as caches
from r1jax.models import flops, transformer
from r1jax.models.cache import Cache
from r1jax.models.config import ModelConfig
from r1jax.models.transformer import Transformer
from r1jax.models.weights import used_axes
from r1jax.parallel import sharding
from r1jax.parallel.mesh import reshape_mesh, row_shards
from r1jax.rollouts import prompts, replay, slots
from r1jax.rollouts.slots import Sampling
from r1jax.tools.plan import loads
from r1jax.types import RecordedExperts

TEMPLATE = 80  # Tokens that all prompts share; about those of R1-Zero.


def weights(mesh: Mesh, sizes: ModelConfig, params):
  """The parameters for decoding, as shapes on the mesh of the rollouts."""
  cast = functools.partial(slots.cast, sizes)
  used = jax.eval_shape(cast, params)
  split = sharding.tree_shardings(mesh, used_axes(sizes), used)
  used = jax.tree.map(_struct, used, split)
  if sizes.scan:
    return used
  for name, count in transformer.stacks(sizes).items():
    if name in used:
      layer = jax.tree.map(_slice, used.pop(name))
      used |= {f"{name}_{i}": layer for i in range(count)}
  return used


def _struct(leaf, sharding):
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _slice(leaf):
  """One layer of a stacked weight."""
  spec = PartitionSpec(*leaf.sharding.spec[1:])
  on = NamedSharding(leaf.sharding.mesh, spec)
  return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=on)


def cached(mesh: Mesh, cache: Cache) -> Cache:
  """A cache as shapes sharded on the mesh."""

  def one(leaf, names):
    spec = sharding.spec(names, leaf.shape, mesh)
    return _struct(leaf, NamedSharding(mesh, spec))

  return jax.tree.map(one, cache, caches.logical_axes(cache))


def cached_prompts(
  mesh: Mesh, sizes: ModelConfig, count: int, size: int
) -> Cache:
  """The cache of `count` prompts of `size` tokens each."""
  empty = lambda: caches.empty(sizes, count, size).replace(prefix=())
  return cached(mesh, jax.eval_shape(empty))


def full_cache(
  mesh: Mesh, model: Transformer, sampling: ConfigDict, together: int
) -> Cache:
  """The cache of `slots.decode` at its largest.

  `together` slots share a prompt.
  """
  prompt, size = sampling.prompt_tokens, sampling.max_tokens
  if together == 1:
    size += prompt
  empty = functools.partial(
    slots.empty, model, sampling.num_slots, size, together, prompt
  )
  return cached(mesh, jax.eval_shape(empty))


def recorded_experts(
  config: ConfigDict, mesh: Mesh, sizes: ModelConfig
) -> list[RecordedExperts]:
  """The records of a round as shapes: of every attempt of dynamic sampling."""
  c = config.sampling
  shape = (config.prompts_per_round, config.group_size, c.max_tokens)
  one = replay.shapes(sizes, mesh, shape, TEMPLATE + c.prompt_tokens)
  return [one] * (1 + config.dynamic_sampling.rounds)


def programs(
  config: ConfigDict, mesh: Mesh, sizes: ModelConfig, params, resident
) -> list[dict[str, Any]]:
  """The fields of `programs.Program` for reshard, prefill and decode.

  Decoding is planned at its largest: every slot is in use, and the cache has
  the full length of prompt and completion.

  Args:
    config: of a GRPO run.
    mesh: of training.
    sizes: the model config.
    params: of training, as sharded shapes.
    resident: other trees on the devices meanwhile, by name.
  """
  c, model = config.sampling, Transformer(sizes)
  on = reshape_mesh(mesh, **config.rollout_mesh)
  used = weights(on, sizes, params)
  whole, split = sharding.replicated(on), sharding.by_rows(on)
  length = c.prompt_tokens + c.max_tokens
  record = c.get("record_experts", False)

  prefix = jax.tree.map(
    lambda leaf: _struct(leaf, whole),
    jax.eval_shape(lambda: caches.as_prefix(caches.empty(sizes, 1, TEMPLATE))),
  )
  shards = row_shards(on)
  count = -(-prompts.PREFILL // shards) * shards
  prompt_ids = jax.ShapeDtypeStruct(
    (count, c.prompt_tokens), jnp.int32, sharding=split
  )
  together = prompts.slots_per_prompt(
    c.prompt_tokens, c.max_tokens, config.group_size, c.num_slots // shards
  )
  # Those that are being read, and those that were before them.
  ahead = cached_prompts(on, sizes, 2 * count, c.prompt_tokens)
  beside = resident | {"cached prompts": ahead}
  if record:
    beside["recorded experts"] = recorded_experts(config, on, sizes)

  cache = full_cache(on, model, c, together)
  begun = slots.to_table(slots.idle_slots(c.num_slots, c.decode_steps))
  begun = _struct(begun, whole)
  sampling = Sampling(
    mesh=on,
    vocab_size=sizes.vocab_size,
    steps=c.decode_steps,
    record_experts=record,
  )
  rollout, sizes_on = dict(mesh=on, sizes=sizes, rows=None), dict(on.shape)
  token, pair = flops.of_token(sizes), flops.of_pair(sizes)
  pairs = c.prompt_tokens * (TEMPLATE + c.prompt_tokens / 2)
  by_step = token + flops.of_logits(sizes)
  by_step += length * flops.of_pair(sizes, cached=True)
  return [
    rollout
    | dict(
      name="reshard",
      declare=loads.nothing,
      function=slots.prepare,
      arguments=(model, params, mesh, on),
      options={},
      parts={"params": params},
      beside={k: v for k, v in resident.items() if k != "params"},
      flops=0.0,
      tokens=0,
    ),
    rollout
    | dict(
      name="prefill",
      declare=functools.partial(
        loads.of_pass, prompt_ids.shape, sizes, sizes_on
      ),
      function=slots.read_prompts,
      arguments=(model, used, prefix, prompt_ids),
      options={"record_experts": record},
      parts={"rollout weights": used, "prompts": prompt_ids},
      beside=beside,
      flops=count * (c.prompt_tokens * token + pairs * pair),
      tokens=count * c.prompt_tokens,
      prompts=count,
    ),
    rollout
    | dict(
      name="decode",
      declare=functools.partial(
        loads.of_decoding, c.decode_steps, c.num_slots, sizes, sizes_on
      ),
      function=slots.decode,
      arguments=(model, sampling, used, prefix, cache, begun),
      options={},
      parts={"rollout weights": used, "cache": cache},
      beside=beside,
      flops=c.decode_steps * c.num_slots * by_step,
      tokens=c.decode_steps * c.num_slots,
    ),
  ]
