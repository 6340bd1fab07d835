"""The programs of a run, ready to compile, with shapes instead of arrays."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.tree_util import keystr
from ml_collections import ConfigDict

from r1jax.models import flops
from r1jax.models.config import ModelConfig
from r1jax.models.transformer import Transformer
from r1jax.models.weights import logical_axes, weights
from r1jax.parallel import offload, sharding
from r1jax.parallel.mesh import row_shards
from r1jax.rollouts import replay
from r1jax.tools.plan import fill as fills
from r1jax.tools.plan import loads, rollouts
from r1jax.tools.plan.costs import Declared
from r1jax.tools.plan.fill import Fill
from r1jax.training import models, policy, sft
from r1jax.training.optimizer import make_optimizer
from r1jax.training.run import make_steps, use_reference
from r1jax.training.update import Update, init_state, make_update
from r1jax.types import Batch, Packed

Shape = tuple[int, int]  # The rows of a microbatch, and their width.
PER_STEP = 3  # The cost of an update in forward passes; a gradient takes two.


class Program(NamedTuple):
  """One jitted function of a run, and its arguments."""

  name: str
  function: Any  # Jitted.
  arguments: tuple
  parts: Mapping[str, Any]  # Trees of the arguments, by name.
  beside: Mapping[str, Any]  # Other trees on the devices meanwhile, by name.
  flops: float | int  # Model FLOPs on all devices.
  # declare(fill=None, routing="even"): what depends on data; see `loads`.
  declare: Callable[..., Declared]
  tokens: float | int  # Tokens read or sampled on all devices.
  sizes: ModelConfig
  rows: Shape | None  # Of the microbatch; None if it reads none.
  mesh: Mesh
  options: Mapping[str, Any] = {}  # Keyword arguments.
  prompts: int = 0  # That it reads.


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


def row_array(mesh: Mesh, shape: Shape, dtype):
  """The shape of an array of a microbatch, [B, T]."""
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.by_rows(mesh))


def batch(mesh: Mesh, shape: Shape, **others) -> Batch:
  """A microbatch of shapes; `others` are its fields for RL."""
  names = [field.name for field in dataclasses.fields(Packed)]
  tokens = row_array(mesh, shape, jnp.int32)
  count = scalar(mesh, jnp.int32)
  return Batch(
    packed=Packed(**dict.fromkeys(names, tokens)),
    weights=row_array(mesh, shape, jnp.float32),
    num_targets=count,
    num_tokens=count,
    **others,
  )


def shapes(config: ConfigDict, mesh: Mesh, fill: Fill | None) -> list[Shape]:
  """The rows and widths of the microbatches to plan, the widest first.

  Without a simulation, the widest alone is planned: it takes the most memory.
  """
  widths = sorted(config.rows.widths, reverse=True)[: None if fill else 1]
  return [(row_shards(mesh) * config.rows.shard_rows, w) for w in widths]


def forward_flops(sizes: ModelConfig, rows: int, width: int) -> float | int:
  """Model FLOPs of a forward pass over full rows with one text each."""
  pairs = width * (width + 1) / 2
  by_token = flops.of_token(sizes) + flops.of_logits(sizes)
  return rows * (width * by_token + pairs * flops.of_pair(sizes))


def _declare(shape: Shape, sizes: ModelConfig, mesh: Mesh, fill: Fill | None):
  return functools.partial(
    loads.of_pass, shape, sizes, dict(mesh.shape), fill=fill
  )


def sizes_of(config: ConfigDict) -> ModelConfig:
  """The model config of a run."""
  keep = config.get("mtp") != "drop"
  return models.architecture(**config.model, mtp=keep)


def of_sft(
  config: ConfigDict, mesh: Mesh, fill: Fill | None = None
) -> list[Program]:
  """The programs of supervised fine-tuning."""
  sizes = sizes_of(config)
  optimizer = make_optimizer(**config.optimizer)
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
  read = {
    shape: batch(mesh, shape, **taught(config, mesh, shape))
    for shape in shapes(config, mesh, fill)
  }
  return _of_update(update, state, read, {}, mesh, sizes, fill)


def taught(config: ConfigDict, mesh: Mesh, shape: Shape) -> dict[str, Any]:
  """What a teacher adds to a microbatch; nothing without one.

  The teacher itself, which is beside the state of training, is not planned.
  """
  if "path" not in config.teacher:
    return {}
  shape = (*shape, config.teacher.top_k)
  return {
    "teacher_logprobs": row_array(mesh, shape, jnp.float32),
    "teacher_ids": row_array(mesh, shape, jnp.int32),
  }


def of_sampling(
  config: ConfigDict, mesh: Mesh, fill: Fill | None = None
) -> list[Program]:
  """The programs that sample on the mesh of the run; nothing is trained."""
  del fill
  sizes = models.architecture(**config.model, mtp=False)
  dtype = config.model.get("dtype", "float32")
  params = sharded_shapes(mesh, sizes, parameters(sizes, dtype))
  as_round = ConfigDict(config.to_dict())
  as_round.rollout_mesh = dict(mesh.shape)
  if config.loop == "evaluate":
    sets = config.problems.sets.values()
    as_round.group_size = max(each.samples for each in sets)
  else:
    as_round.group_size = config.samples
  sampled = rollouts.programs(as_round, mesh, sizes, params, {})
  return [Program(**fields) for fields in sampled]


def of_grpo(
  config: ConfigDict, mesh: Mesh, fill: Fill | None = None
) -> list[Program]:
  """The large programs of a GRPO run."""
  sizes = sizes_of(config)
  optimizer, score, update = make_steps(
    config, Transformer(sizes), StubTokenizer(sizes.vocab_size)
  )
  dtype = config.model.get("dtype", "float32")
  state = _state(config, mesh, sizes, optimizer, dtype)
  has_reference, scorer = use_reference(config), state.params
  reference = None
  if has_reference:
    copy = functools.partial(policy.reference_copy, sizes)
    copied = jax.eval_shape(copy, state.params)
    offloaded = "" if "reference" in config.offload else None
    reference = sharded_shapes(mesh, sizes, copied, offloaded)
    # `offload.to_device` copies it before microbatches are scored.
    scorer = sharded_shapes(mesh, sizes, copied)
  read = {
    shape: _scored(config, mesh, shape, sizes, has_reference)
    for shape in shapes(config, mesh, fill)
  }
  resident = _parts(state) | {"reference": reference}
  beside = {"reference": reference, **_other_experts(config, mesh, sizes)}
  programs = _of_update(update, state, read, beside, mesh, sizes, fill)
  if has_reference or config.old == "trainer":
    name = "reference" if has_reference else "params"
    for shape, full in read.items():
      unscored = full.replace(advantages=None, reference_logprobs=None)
      programs.append(
        Program(
          name=f"score {shape[1]}",
          function=score,
          arguments=(scorer, unscored),
          parts={name: scorer, "batch": unscored},
          beside=(
            _parts(state)
            if has_reference
            else {"optimizer": state.optimizer_state}
          )
          | _other_experts(config, mesh, sizes),
          flops=forward_flops(sizes, *shape),
          declare=_declare(shape, sizes, mesh, fill),
          tokens=math.prod(shape),
          sizes=sizes,
          rows=shape,
          mesh=mesh,
        )
      )
  sampled = rollouts.programs(config, mesh, sizes, state.params, resident)
  return programs + [Program(**fields) for fields in sampled]


def _of_update(
  update: Update,
  state,
  read: Mapping[Shape, Batch],
  beside: Mapping[str, Any],
  mesh: Mesh,
  sizes: ModelConfig,
  fill: Fill | None,
) -> list[Program]:
  """The gradient of a microbatch of each shape, and the optimizer's step."""
  params, programs = state.params, []
  common = dict(sizes=sizes, mesh=mesh)
  for shape, one in read.items():
    programs.append(
      Program(
        name=f"gradient {shape[1]}",
        function=update.add,
        arguments=(params, params, one),
        parts={"params": params, "sum of gradients": params, "batch": one},
        beside={"optimizer": state.optimizer_state, **beside},
        flops=PER_STEP * forward_flops(sizes, *shape),
        declare=_declare(shape, sizes, mesh, fill),
        tokens=math.prod(shape),
        rows=shape,
        **common,
      )
    )
  with jax.set_mesh(mesh):
    _, metrics = jax.eval_shape(update.add, params, params, one)
  whole = jax.tree.map(lambda _: sharding.replicated(mesh), metrics)
  programs.append(
    Program(
      name="optimizer",
      function=update.apply,
      arguments=(state, params, with_shardings(metrics, whole)),
      parts=_parts(state) | {"gradients": params},
      beside=beside,
      flops=0.0,
      declare=loads.nothing,
      tokens=0,
      rows=None,
      **common,
    )
  )
  return programs


def _scored(config, mesh, shape, sizes, has_reference) -> Batch:
  """A microbatch of GRPO with all its fields."""
  floats = row_array(mesh, shape, jnp.float32)
  return batch(
    mesh,
    shape,
    completions=row_array(mesh, shape, jnp.int32),
    advantages=floats,
    sampler_logprobs=floats,
    old_logprobs=floats,
    reference_logprobs=floats if has_reference else None,
    experts=_experts(config, mesh, shape, sizes),
  )


def _state(config, mesh, sizes, optimizer, dtype="float32"):
  """The train state of a run, as sharded shapes."""
  params = parameters(sizes, dtype)
  state = jax.eval_shape(lambda p: init_state(p, optimizer), params)
  offloaded = ".optimizer_state" if "optimizer" in config.offload else None
  return sharded_shapes(mesh, sizes, state, offloaded)


def _parts(state) -> dict[str, Any]:
  return {"params": state.params, "optimizer": state.optimizer_state}


def _experts(config, mesh, shape, sizes):
  """The shape [L, k, B, T] of recorded experts; None if not recorded."""
  if not config.sampling.get("record_experts", False):
    return None
  shape = (sizes.num_moe_layers, sizes.experts.per_token, *shape)
  split = sharding.spec((None, None, "rows", "tokens"), shape, mesh)
  return jax.ShapeDtypeStruct(
    shape, replay.dtype_of(sizes), sharding=NamedSharding(mesh, split)
  )


def _other_experts(config, mesh, sizes) -> dict[str, Any]:
  """Those of a round's other microbatches, all completions at their limit."""
  if not config.sampling.get("record_experts", False):
    return {}
  ((rows, width),) = shapes(config, mesh, None)
  group = fills.PROMPT + config.group_size * config.sampling.max_tokens
  count = -(-config.prompts_per_round * group // (rows * width)) - 1
  one = _experts(config, mesh, (rows, width), sizes)
  return {"experts of other microbatches": [one] * count}


PROGRAMS: dict[str, Callable[..., list[Program]]] = {
  "evaluate": of_sampling,
  "generate": of_sampling,
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
