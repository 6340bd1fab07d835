"""Estimates of memory and time of an update, to rank meshes and for GPUs.

They count what the algorithm stores and sends, and not what the compiler adds.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from r1jax import ops
from r1jax.models.config import Latent, ModelConfig
from r1jax.models.weights import weights
from r1jax.tools.plan.bounds import Bounds
from r1jax.tools.plan.chips import Topology

BF16, F32 = 2, 4  # Bytes of an element.
TILE = 64  # Tokens of a device are a multiple of it.
PASSES = 4  # Forward, rematerialised forward, and two for the gradient.


class Sizes(NamedTuple):
  """Numbers of weights of a model."""

  dense: int  # All weights except those of routed experts.
  routed: int


def sizes_of(config: ModelConfig) -> Sizes:
  """The numbers of weights of a model."""
  routed = total = 0
  for weight in _leaves(config):
    total += math.prod(weight.shape)
    if "expert" in weight.axes:
      routed += math.prod(weight.shape)
  return Sizes(total - routed, routed)


def _leaves(config: ModelConfig):
  import jax

  return jax.tree.leaves(weights(config))


def temporaries(
  config: ModelConfig, rows: tuple[int, int], mesh: Mapping[str, int]
) -> dict[str, float]:
  """Bytes per device of the temporaries of a gradient, by kind.

  `rows` are the number and the width of the rows of the microbatch.
  """
  count, devices = sizes_of(config), math.prod(mesh.values())
  shards = devices // mesh["data"]
  tokens = _tokens(rows, mesh)
  layers, width, a = config.num_layers, config.width, config.attention
  heads = a.num_heads // mesh["tensor"]
  per_head = (
    a.key_size + a.value_size if isinstance(a, Latent) else (2 * a.head_size)
  )
  hidden = config.dense_width // mesh["tensor"]
  result = {
    "gradients": F32 * (count.dense + count.routed) / shards,
    "activations": BF16 * tokens * layers * width
    + BF16 * tokens * (3 * heads * per_head + 4 * width + 3 * hidden),
    "logits": 3 * F32 * min(tokens * config.vocab_size, ops.logprobs.LOGITS),
    "gathered weights": 2 * BF16 * count.dense / layers / mesh["tensor"],
  }
  if config.experts:
    e, expert = config.experts, mesh["expert"]
    layer = count.routed / max(1, config.num_moe_layers)
    result["gathered weights"] += 2 * BF16 * layer / expert / mesh["tensor"]
    chunk = min(config.moe_chunk, tokens) * expert
    choices = chunk * min(e.per_token, e.num_routed // expert)
    result["experts' buffers"] = (
      BF16 * choices * (3 * width + 4 * e.width / mesh["tensor"])
    )
  return result


def bounds(
  config: ModelConfig,
  rows: tuple[int, int],
  mesh: Mapping[str, int],
  topology: Topology,
  flops: float,
) -> Bounds:
  """Lower bounds on the time of a gradient with these total model FLOPs.

  `rows` are the number and the width of the rows of the microbatch. The weights
  of a layer are gathered twice and its gradients scattered once. Tokens of
  experts, keys and values, and hidden units that are split cross the network in
  each of four passes.
  """
  count, chip = sizes_of(config), topology.chip
  shards = {
    "dense": mesh["fsdp"] * mesh["expert"] * mesh["context"],
    "routed": mesh["fsdp"] * mesh["context"],
  }
  local = {
    "dense": count.dense / mesh["tensor"],
    "routed": count.routed / mesh["expert"] / mesh["tensor"],
  }
  tokens, width = _tokens(rows, mesh), config.width
  remote = lambda n: (n - 1) / n  # The share that is on other devices.
  sent = {
    "weights": sum(
      (2 * BF16 + F32) * local[kind] * remote(shards[kind]) for kind in local
    ),
    "rows": PASSES
    * BF16
    * tokens
    * config.cache_size
    * (mesh["context"] - 1)
    * config.num_layers,
    "hidden": PASSES
    * 4
    * BF16
    * tokens
    * width
    * remote(mesh["tensor"])
    * config.num_layers,
  }
  if config.experts:
    sent["experts"] = PASSES * 2 * BF16 * tokens * width
    sent["experts"] *= (mesh["expert"] - 1) * config.num_moe_layers
  copies = (
    2
    * F32
    * remote(mesh["data"])
    * sum(local[kind] / shards[kind] for kind in local)
  )
  rate = chip.link * 2 * chip.torus if chip.torus else chip.link
  inner = math.prod(mesh.values()) // mesh["data"]
  if not chip.torus and inner > topology.shape[0]:
    rate = chip.network
  between = rate if topology.num_slices == 1 else chip.network
  devices = math.prod(mesh.values())
  shared = devices / topology.num_chips
  return Bounds(
    # Rematerialisation adds a third to the FLOPs.
    compute=flops * PASSES / 3 / topology.num_chips / chip.flops,
    memory=3 * BF16 * sum(local.values()) * shared / chip.memory_rate,
    network=shared * (sum(sent.values()) / rate + copies / between),
  )


def _tokens(rows: tuple[int, int], mesh: Mapping[str, int]) -> float:
  """The number of tokens of a microbatch on one device."""
  shards = mesh["data"] * mesh["fsdp"] * mesh["expert"]
  return -(-rows[0] // shards) * rows[1] / mesh["context"]


def meshes(
  config: ModelConfig, widths: Sequence[int], devices: int, slices: int
) -> Iterator[dict[str, int]]:
  """All meshes of `devices` devices over which all dimensions divide evenly.

  A device has whole tiles of the tokens of a row of any of the `widths`.
  """
  a = config.attention
  heads = a.num_heads if isinstance(a, Latent) else a.num_kv_heads
  routed = config.experts.num_routed if config.experts else 1
  divisors = [n for n in range(1, devices + 1) if devices % n == 0]
  for fsdp, expert, context, tensor in itertools.product(divisors, repeat=4):
    inner = fsdp * expert * context * tensor
    if devices % inner:
      continue
    data = devices // inner
    if (
      data % slices == 0
      and routed % expert == 0
      and heads % tensor == 0
      and not any(width % (context * TILE) for width in widths)
    ):
      yield dict(
        data=data, fsdp=fsdp, expert=expert, context=context, tensor=tensor
      )
