"""The programs of a run, ready to compile: shapes and shardings, no array."""

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
from r1jax.models.presets import preset
from r1jax.models.transformer import Transformer
from r1jax.models.weights import logical_axes, weights
from r1jax.parallel import offload, sharding
from r1jax.tools.plan import rollouts
from r1jax.training import models, policy, sft
from r1jax.training.optimizer import make_optimizer
from r1jax.training.run import make_steps, use_reference
from r1jax.training.update import init_state, make_update
from r1jax.types import Batch, Packed

PER_STEP = 3  # A gradient takes two more passes than the values alone.


class Program(NamedTuple):
  """One jitted function of a run, and what it is called with."""

  name: str
  function: Any  # Jitted.
  arguments: tuple
  parts: Mapping[str, Any]  # Of the arguments: trees, by what they are.
  beside: Mapping[str, Any]  # What else lies on the devices meanwhile.
  flops: float | int  # That the model needs for it, on all devices.
  trips: Mapping[
    str, tuple[float | int, ...]
  ]  # Of loops whose end depends on data, by scope.
  tokens: float | int  # That it reads, or samples, on all devices.
  sizes: ModelConfig
  rows: Mapping[str, int] | None  # The config's section; None for rollouts.
  mesh: Mesh
  options: Mapping[str, Any] = {}  # Keyword arguments.


class Words(NamedTuple):
  """As much of a tokenizer as programs depend on."""

  vocab_size: int
  eos_ids: tuple[int, ...] = (0,)


def shaped(tree, shardings):
  """`tree` as shapes that know where they lie."""
  struct = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  return jax.tree.map(struct, tree, shardings)


def parameters(sizes: ModelConfig, dtype: Any = "float32"):
  """The shapes of a model's parameters."""
  return jax.tree.map(
    lambda w: jax.ShapeDtypeStruct(w.shape, jnp.dtype(dtype)), weights(sizes)
  )


def placed(mesh: Mesh, sizes: ModelConfig, tree, parked: str | None = None):
  """A tree of parameters, of optimizer state, and the like, on the mesh.

  Arrays whose path begins with `parked` wait in the memory of the hosts; see
  `offload`.
  """

  def lies(path, leaf, on):
    if parked is None or not leaf.ndim or not keystr(path).startswith(parked):
      return on
    return on.with_memory_kind(offload.KIND)

  made = sharding.shardings(mesh, logical_axes(sizes), tree)
  return shaped(tree, jax.tree.map_with_path(lies, tree, made))


def scalar(mesh: Mesh, dtype):
  """A number that every device is told."""
  return jax.ShapeDtypeStruct((), dtype, sharding=sharding.whole(mesh))


def slots(mesh: Mesh, rows: Mapping[str, int], dtype):
  """One array of a batch [B, M, T], as a shape."""
  count = rows["max_rows"] // rows["microbatch_rows"]
  shape = rows["microbatch_rows"], count, rows["width"]
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.rows(mesh))


def batch(mesh: Mesh, rows: Mapping[str, int], **others) -> Batch:
  """A batch as shapes; `others` are its fields for RL."""
  names = [field.name for field in dataclasses.fields(Packed)]
  tokens = slots(mesh, rows, jnp.int32)
  count = scalar(mesh, jnp.int32)
  return Batch(
    packed=Packed(**dict.fromkeys(names, tokens)),
    num_microbatches=count,
    weights=slots(mesh, rows, jnp.float32),
    num_targets=count,
    num_tokens=count,
    **others,
  )


def needed(sizes: ModelConfig, rows: int, width: int) -> float | int:
  """FLOPs of a forward pass over whole rows, a text in each."""
  pairs = width * (width + 1) / 2
  by_token = flops.of_token(sizes) + flops.of_logits(sizes)
  return rows * (width * by_token + pairs * flops.of_pair(sizes))


def trips_of(
  rows: Mapping[str, int], sizes: ModelConfig, mesh: Mesh
) -> dict[str, tuple[float | int, ...]]:
  """How often loops run when all rows of a minibatch are full.

  Attention loops over blocks of keys, and within over those of queries that see
  them. Of devices that share a row, the one with its last tokens sees most.
  """
  width, context = rows["width"], mesh.shape["context"]
  keys = -(-width // ops.attention.LONG_BLOCK)
  queries = -(-width // context // ops.attention.LONG_BLOCK)
  pairs = queries * (keys - queries) + queries * (queries + 1) / 2
  chunk = min(4096, ops.logprobs.LOGITS // sizes.vocab_size)
  columns = min(max(1, chunk), ops.logprobs.COLUMNS, width)
  return {
    "experts": (1,),  # Evenly spread, they fit one window.
    "microbatches": (rows["max_rows"] // rows["microbatch_rows"],),
    "logprobs": (-(-width // context // columns),),
    "attention": (keys, pairs / keys),
  }


def sizes_of(config: ConfigDict) -> ModelConfig:
  """The model of a run."""
  if config.loop == "sft":
    return preset(**config.model)
  sizes = models.architecture(**config.model)
  return replace(sizes, mtp_depth=0) if config.mtp == "drop" else sizes


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
      flops=PER_STEP * needed(sizes, rows["max_rows"], rows["width"]),
      trips=trips_of(rows, sizes, mesh),
      tokens=rows["max_rows"] * rows["width"],
      sizes=sizes,
      rows=rows,
      mesh=mesh,
    )
  ]


def of_grpo(config: ConfigDict, mesh: Mesh) -> list[Program]:
  """All that a GRPO run compiles but for trifles."""
  sizes = sizes_of(config)
  model, rows = Transformer(sizes), config.rows.to_dict()
  optimizer, score, update = make_steps(config, model, Words(sizes.vocab_size))
  dtype = config.model.get("dtype", "float32")
  state = _state(config, mesh, sizes, optimizer, dtype)
  refers = use_reference(config)
  reference = None
  if refers:
    copy = functools.partial(policy.reference_copy, sizes)
    parked = "" if "reference" in config.offload else None
    copied = jax.eval_shape(copy, state.params)
    reference = placed(mesh, sizes, copied, parked)
  floats = slots(mesh, rows, jnp.float32)
  read = batch(
    mesh,
    rows,
    completions=slots(mesh, rows, jnp.int32),
    advantages=floats,
    sampler_logprobs=floats,
    old_logprobs=floats,
    reference_logprobs=floats if refers else None,
    experts=_experts(config, mesh, rows, sizes),
  )
  forward = needed(sizes, rows["max_rows"], rows["width"])
  common = dict(
    trips=trips_of(rows, sizes, mesh),
    tokens=rows["max_rows"] * rows["width"],
    sizes=sizes,
    rows=rows,
    mesh=mesh,
  )
  own, reference_part = _parts(state), {"reference": reference}
  made = [
    Program(
      name="update",
      function=update,
      arguments=(state, read),
      parts=own | {"batch": read},
      beside=reference_part,
      flops=PER_STEP * forward,
      **common,
    )
  ]
  if refers or config.old == "trainer":
    scorer = reference if refers else state.params
    unscored = read.replace(advantages=None, reference_logprobs=None)
    made.append(
      Program(
        name="score",
        function=score,
        arguments=(scorer, unscored),
        parts={
          "reference" if refers else "params": scorer,
          "batch": unscored,
        },
        beside=own if refers else {"optimizer": state.optimizer_state},
        flops=forward,
        **common,
      )
    )
  resident = own | reference_part
  sampled = rollouts.programs(config, mesh, sizes, state.params, resident)
  return made + [Program(**fields) for fields in sampled]


def _state(config, mesh, sizes, optimizer, dtype="float32"):
  """The train state of a run."""
  params = parameters(sizes, dtype)
  made = jax.eval_shape(lambda p: init_state(p, optimizer), params)
  parked = ".optimizer_state" if "optimizer" in config.offload else None
  return placed(mesh, sizes, made, parked)


def _parts(state) -> dict[str, Any]:
  return {"params": state.params, "optimizer": state.optimizer_state}


def _experts(config, mesh, rows, sizes):
  """The experts that the sampler used [B, M, T, L, k], if it records them."""
  if not config.sampling.get("record_experts", False):
    return None
  one = slots(mesh, rows, jnp.int16)
  shape = (*one.shape, sizes.num_moe_layers, sizes.experts.per_token)
  return jax.ShapeDtypeStruct(shape, one.dtype, sharding=one.sharding)


PROGRAMS: dict[str, Callable[[ConfigDict, Mesh], list[Program]]] = {
  "grpo": of_grpo,
  "sft": of_sft,
}


def per_device(tree, *, parked: bool = False) -> int:
  """Bytes that one device holds of a tree of shapes.

  If `parked`, its share of those that wait in the hosts' memory instead.
  """
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
    if isinstance(leaf, jax.ShapeDtypeStruct)  # What is static takes nothing.
    and (leaf.sharding.memory_kind == offload.KIND) == parked
  )
