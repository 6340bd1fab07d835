"""The programs of a run, ready to compile, with shapes instead of arrays."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.tree_util import keystr
from ml_collections import ConfigDict

from r1jax import ops
from r1jax.models import flops
from r1jax.models.config import ModelConfig, replace
from r1jax.models.transformer import Transformer
from r1jax.models.weights import logical_axes, weights
from r1jax.parallel import offload, sharding
from r1jax.tools.plan import rollouts
from r1jax.training import models, policy, sft
from r1jax.training.optimizer import make_optimizer
from r1jax.training.run import make_steps, use_reference
from r1jax.training.update import init_state, make_update
from r1jax.types import Batch, Packed

PER_STEP = 3  # The cost of an update in forward passes; a gradient takes two.


class Program(NamedTuple):
  """One jitted function of a run, and its arguments."""

  name: str
  function: Any  # Jitted.
  arguments: tuple
  parts: Mapping[str, Any]  # Trees of the arguments, by name.
  beside: Mapping[str, Any]  # Other trees on the devices meanwhile, by name.
  flops: float | int  # Model FLOPs on all devices.
  # Trip counts of data-dependent loops, by scope; see `costs.count`.
  trips: Mapping[str, tuple[float | int, ...]]
  tokens: float | int  # Tokens read or sampled on all devices.
  sizes: ModelConfig
  rows: Mapping[str, int] | None  # The section of the config; None: rollouts.
  mesh: Mesh
  options: Mapping[str, Any] = {}  # Keyword arguments.


class StubTokenizer(NamedTuple):
  """The attributes of a tokenizer that programs depend on."""

  vocab_size: int
  eos_ids: tuple[int, ...] = (0,)


def with_shardings(tree, shardings):
  """`tree` as shapes with shardings."""
  struct = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  return jax.tree.map(struct, tree, shardings)


def parameters(sizes: ModelConfig, dtype: Any = "float32"):
  """The shapes of a model's parameters."""
  return jax.tree.map(
    lambda w: jax.ShapeDtypeStruct(w.shape, jnp.dtype(dtype)), weights(sizes)
  )


def sharded_shapes(
  mesh: Mesh, sizes: ModelConfig, tree, offloaded: str | None = None
):
  """A tree that contains parameters, as shapes sharded on the mesh.

  Arrays whose path begins with `offloaded` are in host memory; see `offload`.
  """

  def place(path, leaf, on):
    if (
      offloaded is None
      or not leaf.ndim
      or not keystr(path).startswith(offloaded)
    ):
      return on
    return on.with_memory_kind(offload.HOST_MEMORY)

  shardings = sharding.tree_shardings(mesh, logical_axes(sizes), tree)
  return with_shardings(tree, jax.tree.map_with_path(place, tree, shardings))


def scalar(mesh: Mesh, dtype):
  """The shape of a scalar that is replicated on every device."""
  return jax.ShapeDtypeStruct((), dtype, sharding=sharding.replicated(mesh))


def row_array(mesh: Mesh, rows: Mapping[str, int], dtype):
  """The shape of an array of a batch, [B, M, T]."""
  count = rows["max_rows"] // rows["microbatch_rows"]
  shape = rows["microbatch_rows"], count, rows["width"]
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.by_rows(mesh))


def batch(mesh: Mesh, rows: Mapping[str, int], **others) -> Batch:
  """A batch of shapes; `others` are its fields for RL."""
  names = [field.name for field in dataclasses.fields(Packed)]
  tokens = row_array(mesh, rows, jnp.int32)
  count = scalar(mesh, jnp.int32)
  return Batch(
    packed=Packed(**dict.fromkeys(names, tokens)),
    num_microbatches=count,
    weights=row_array(mesh, rows, jnp.float32),
    num_targets=count,
    num_tokens=count,
    **others,
  )


def forward_flops(sizes: ModelConfig, rows: int, width: int) -> float | int:
  """Model FLOPs of a forward pass over full rows with one text each."""
  pairs = width * (width + 1) / 2
  by_token = flops.of_token(sizes) + flops.of_logits(sizes)
  return rows * (width * by_token + pairs * flops.of_pair(sizes))


def trips_of(
  rows: Mapping[str, int], sizes: ModelConfig, mesh: Mesh
) -> dict[str, tuple[float | int, ...]]:
  """The trip counts of loops when all rows of a minibatch are full.

  Attention loops over blocks of keys, and inside over blocks of queries that
  see them. The counts are those of the device with the last tokens of a row,
  which sees the most keys.
  """
  width, context = rows["width"], mesh.shape["context"]
  keys = -(-width // ops.attention.LONG_BLOCK)
  queries = -(-width // context // ops.attention.LONG_BLOCK)
  pairs = queries * (keys - queries) + queries * (queries + 1) / 2
  chunk = min(4096, ops.logprobs.LOGITS // sizes.vocab_size)
  columns = min(max(1, chunk), ops.logprobs.COLUMNS, width)
  return {
    "experts": (1,),  # An even load fits one window.
    "microbatches": (rows["max_rows"] // rows["microbatch_rows"],),
    "logprobs": (-(-width // context // columns),),
    "attention": (keys, pairs / keys),
  }


def sizes_of(config: ConfigDict) -> ModelConfig:
  """The model config of a run."""
  sizes = models.architecture(**config.model)
  drop = config.get("mtp") == "drop"
  return replace(sizes, mtp_depth=0) if drop else sizes


def of_sft(config: ConfigDict, mesh: Mesh) -> list[Program]:
  """The one program of supervised fine-tuning."""
  sizes = sizes_of(config)
  optimizer, rows = make_optimizer(**config.optimizer), config.rows.to_dict()
  loss = functools.partial(
    sft.objective, Transformer(sizes), sizes.vocab_size, **config.loss
  )
  update = make_update(
    loss,
    optimizer,
    router_bias_speed=config.router_bias_speed,
    axes=logical_axes(sizes),
  )
  state = _state(config, mesh, sizes, optimizer)
  read = batch(mesh, rows)
  return [
    Program(
      name="update",
      function=update,
      arguments=(state, read),
      parts=_parts(state) | {"batch": read},
      beside={},
      flops=PER_STEP * forward_flops(sizes, rows["max_rows"], rows["width"]),
      trips=trips_of(rows, sizes, mesh),
      tokens=rows["max_rows"] * rows["width"],
      sizes=sizes,
      rows=rows,
      mesh=mesh,
    )
  ]


def of_grpo(config: ConfigDict, mesh: Mesh) -> list[Program]:
  """The large programs of a GRPO run."""
  sizes = sizes_of(config)
  model, rows = Transformer(sizes), config.rows.to_dict()
  optimizer, score, update = make_steps(
    config, model, StubTokenizer(sizes.vocab_size)
  )
  dtype = config.model.get("dtype", "float32")
  state = _state(config, mesh, sizes, optimizer, dtype)
  has_reference = use_reference(config)
  reference = None
  if has_reference:
    copy = functools.partial(policy.reference_copy, sizes)
    offloaded = "" if "reference" in config.offload else None
    copied = jax.eval_shape(copy, state.params)
    reference = sharded_shapes(mesh, sizes, copied, offloaded)
  floats = row_array(mesh, rows, jnp.float32)
  read = batch(
    mesh,
    rows,
    completions=row_array(mesh, rows, jnp.int32),
    advantages=floats,
    sampler_logprobs=floats,
    old_logprobs=floats,
    reference_logprobs=floats if has_reference else None,
    experts=_experts(config, mesh, rows, sizes),
  )
  forward = forward_flops(sizes, rows["max_rows"], rows["width"])
  common = dict(
    trips=trips_of(rows, sizes, mesh),
    tokens=rows["max_rows"] * rows["width"],
    sizes=sizes,
    rows=rows,
    mesh=mesh,
  )
  state_parts, reference_part = _parts(state), {"reference": reference}
  programs = [
    Program(
      name="update",
      function=update,
      arguments=(state, read),
      parts=state_parts | {"batch": read},
      beside=reference_part,
      flops=PER_STEP * forward,
      **common,
    )
  ]
  if has_reference or config.old == "trainer":
    scorer = reference if has_reference else state.params
    unscored = read.replace(advantages=None, reference_logprobs=None)
    programs.append(
      Program(
        name="score",
        function=score,
        arguments=(scorer, unscored),
        parts={
          "reference" if has_reference else "params": scorer,
          "batch": unscored,
        },
        beside=state_parts
        if has_reference
        else {"optimizer": state.optimizer_state},
        flops=forward,
        **common,
      )
    )
  resident = state_parts | reference_part
  sampled = rollouts.programs(config, mesh, sizes, state.params, resident)
  return programs + [Program(**fields) for fields in sampled]


def _state(config, mesh, sizes, optimizer, dtype="float32"):
  """The train state of a run, as sharded shapes."""
  params = parameters(sizes, dtype)
  state = jax.eval_shape(lambda p: init_state(p, optimizer), params)
  offloaded = ".optimizer_state" if "optimizer" in config.offload else None
  return sharded_shapes(mesh, sizes, state, offloaded)


def _parts(state) -> dict[str, Any]:
  return {"params": state.params, "optimizer": state.optimizer_state}


def _experts(config, mesh, rows, sizes):
  """The shape [B, M, T, L, k] of recorded experts; None if not recorded."""
  if not config.sampling.get("record_experts", False):
    return None
  one = row_array(mesh, rows, jnp.int16)
  shape = (*one.shape, sizes.num_moe_layers, sizes.experts.per_token)
  return jax.ShapeDtypeStruct(shape, one.dtype, sharding=one.sharding)


PROGRAMS: dict[str, Callable[[ConfigDict, Mesh], list[Program]]] = {
  "grpo": of_grpo,
  "sft": of_sft,
}


def bytes_per_device(tree, *, offloaded: bool = False) -> int:
  """The bytes of a tree of sharded shapes per device, in device memory.

  With `offloaded`, those in host memory instead.
  """
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
    if isinstance(leaf, jax.ShapeDtypeStruct)  # Static arguments have no size.
    and (leaf.sharding.memory_kind == offload.HOST_MEMORY) == offloaded
  )
