"""The programs that sample, as shapes and shardings; see `plan_programs`."""

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
from r1jax.rollouts import engine, slots
from r1jax.rollouts.slots import Sampling

TEMPLATE = 80  # Tokens that all prompts begin with: R1-Zero's, about.


def weights(mesh: Mesh, sizes: ModelConfig, params):
  """The parameters as decoding reads them, on the mesh of the rollouts."""
  cast = functools.partial(slots.cast, sizes)
  used = jax.eval_shape(cast, params)
  split = sharding.shardings(mesh, used_axes(sizes), used)
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
  lies = NamedSharding(leaf.sharding.mesh, spec)
  return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=lies)


def cached(mesh: Mesh, cache: Cache) -> Cache:
  """A cache as shapes that know where they are on the mesh."""

  def one(leaf, names):
    spec = sharding.spec(names, leaf.shape, mesh)
    return _struct(leaf, NamedSharding(mesh, spec))

  return jax.tree.map(one, cache, caches.logical_axes(cache))


def cached_prompts(
  mesh: Mesh, sizes: ModelConfig, count: int, size: int
) -> Cache:
  """The cache of `count` prompts of `size` tokens each."""
  empty = functools.partial(caches.empty, sizes, count, size)
  return cached(mesh, jax.eval_shape(empty).replace(prefix=()))


def full_slots(
  mesh: Mesh, model: Transformer, sampling: ConfigDict
) -> slots.Slots:
  """What `slots.decode` goes on with at its largest."""
  count, together = sampling.num_slots, sampling.get("slots_per_prompt", 1)
  prompt, size = sampling.prompt_tokens, sampling.max_tokens
  if together == 1:
    size += prompt
  empty = jax.eval_shape(
    functools.partial(slots.empty, model, count, size, together, prompt)
  )
  on_mesh = lambda leaf: _struct(leaf, sharding.rows(mesh))
  others = jax.tree.map(on_mesh, empty.replace(cache=None))
  return others.replace(cache=cached(mesh, empty.cache))


def programs(
  config: ConfigDict, mesh: Mesh, sizes: ModelConfig, params, resident
) -> list[dict[str, Any]]:
  """Fields of `plan_programs.Program`: reshard, prefill and decode.

  Decoding is planned at its largest: every slot in use, and the cache as long
  as prompt and completion together may be.

  Args:
    config: of a GRPO run.
    mesh: of the training.
    sizes: of the model.
    params: of the training, where they lie.
    resident: what stays on the devices meanwhile, by what it is.
  """
  c, model = config.sampling, Transformer(sizes)
  on = sharding.reshaped(mesh, **config.rollout_mesh)
  used = weights(on, sizes, params)
  whole, split = sharding.whole(on), sharding.rows(on)
  length = c.prompt_tokens + c.max_tokens
  record = c.get("record_experts", False)

  prefix = jax.tree.map(
    lambda leaf: _struct(leaf, whole),
    jax.eval_shape(lambda: caches.as_prefix(caches.empty(sizes, 1, TEMPLATE))),
  )
  shards = sharding.row_shards(on)
  count = -(-engine.PREFILL // shards) * shards
  own = jax.ShapeDtypeStruct(
    (count, c.prompt_tokens), jnp.int32, sharding=split
  )
  prompts = cached_prompts(
    on, sizes, -(-config.prompts_per_round // count) * count, c.prompt_tokens
  )

  begun = full_slots(on, model, c)
  sampling = Sampling(
    mesh=on,
    vocab_size=sizes.vocab_size,
    eos_ids=(0,),
    steps=c.decode_steps,
    temperature=c.temperature,
    top_p=c.get("top_p", 1.0),
    top_k=c.get("top_k", 0),
    record_experts=record,
  )
  trips = {"decoding": (c.decode_steps,), "experts": (1,)}
  rollout = dict(mesh=on, sizes=sizes, rows=None, trips=trips)
  token, pair = flops.of_token(sizes), flops.of_pair(sizes)
  pairs = c.prompt_tokens * (TEMPLATE + c.prompt_tokens / 2)
  by_step = token + flops.of_logits(sizes)
  by_step += length * flops.of_pair(sizes, cached=True)
  return [
    rollout
    | dict(
      name="reshard",
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
      function=slots.read_prompts,
      arguments=(model, used, prefix, own),
      options={"record_experts": record},
      parts={"rollout weights": used, "prompts": own},
      beside=resident | {"cached prompts": prompts},
      flops=count * (c.prompt_tokens * token + pairs * pair),
      tokens=count * c.prompt_tokens,
    ),
    rollout
    | dict(
      name="decode",
      function=slots.decode,
      arguments=(model, sampling, used, prefix, begun),
      options={},
      parts={"rollout weights": used, "cache": begun.cache},
      beside=resident | {"cached prompts": prompts},
      flops=c.decode_steps * c.num_slots * by_step,
      tokens=c.decode_steps * c.num_slots,
    ),
  ]
