"""LoRA: low-rank adapters of a model that stays as it is (arXiv:2106.09685).

An adapted matrix is W + (alpha / rank) A B, in which only A and B are trained,
optimized and saved. The model itself is the reference policy of RL.

Layers do not know of it: the loss merges the adapter into the matrices. That
takes a second copy of the adapted matrices while a microbatch runs, and their
gradient, but no moments of an optimizer and no float32 copy.

One pair (A, B) adapts one of our arrays. Where that holds several released
matrices, such as queries, keys and values, they share A; each has its columns
of B. So an adapter can be written in the layout of PEFT, which keeps a pair for
each (`save`).
"""

import json
import math
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from r1jax.hf import layout
from r1jax.models.config import ModelConfig
from r1jax.models.weights import names_of, weights
from r1jax.parallel import sharding
from r1jax.runtime import distributed
from r1jax.types import Batch, Params

# Names of the arrays that may be adapted: projections of attention, of dense
# and shared feed-forward layers, and of routed experts.
ATTENTION = ("qkv", "q", "q_up", "qkv_down", "kv_up", "out")
DENSE = ("gate_up", "down")
TARGETS = (*ATTENTION, *DENSE, "expert_gate_up", "expert_down")
FILES = "adapter_config.json", "adapter_model.safetensors"


class Lora(NamedTuple):
  """What an adapter is, apart from its values."""

  config: ModelConfig  # Of the model.
  rank: int
  alpha: float
  targets: Collection[str]

  @property
  def scale(self) -> float:
    """By which A B is multiplied."""
    return self.alpha / self.rank


class Pair(NamedTuple):
  """The sizes of one adapted array; the first axes are layers and experts."""

  lead: tuple[int, ...]
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  axes: tuple[str | None, ...]  # Logical axes of the whole array.


def pairs(lora: Lora) -> dict[tuple[str, ...], Pair]:
  """The adapted arrays by their paths; MTP blocks have no adapters."""
  found = {}
  for path, weight in jax.tree.leaves_with_path(weights(lora.config)):
    names = names_of(path)
    if names[-1] in lora.targets and names[0] != "mtp":
      lead = 1 + names[-1].startswith("expert_")
      ends = len(weight.shape) - 1 if names[-1] == "out" else lead + 1
      found[names] = Pair(
        weight.shape[:lead],
        weight.shape[lead:ends],
        weight.shape[ends:],
        weight.axes,
      )
  if not found:
    raise ValueError(
      f"lora: the model has none of the targets {', '.join(lora.targets)}"
    )
  return found


def init(lora: Lora, seed: int) -> Params:
  """A new adapter: A is uniform as in PEFT, and B is 0, so that A B is."""
  adapter: dict = {}
  for number, (names, pair) in enumerate(pairs(lora).items()):
    key = jax.random.fold_in(jax.random.key(seed), number)
    bound = 1 / math.sqrt(math.prod(pair.inputs))
    shape = (*pair.lead, *pair.inputs, lora.rank)
    _place(
      adapter,
      names,
      {
        "a": jax.random.uniform(key, shape, minval=-bound, maxval=bound),
        "b": jnp.zeros((*pair.lead, lora.rank, *pair.outputs)),
      },
    )
  return adapter


def logical_axes(lora: Lora) -> dict:
  """The logical axes of an adapter, as a tree like it."""
  axes: dict = {}
  for names, pair in pairs(lora).items():
    lead = len(pair.lead)
    ends = lead + len(pair.inputs)
    of_a = (*pair.axes[:ends], None)
    of_b = (*pair.axes[:lead], None, *pair.axes[ends:])
    _place(axes, names, {"a": of_a, "b": of_b})
  return axes


def _place(tree: dict, names: tuple[str, ...], value: Any) -> None:
  for name in names[:-1]:
    tree = tree.setdefault(name, {})
  tree[names[-1]] = value


def merge(lora: Lora, base: Params, adapter: Params) -> Params:
  """The parameters of the adapted model, in the dtypes of `base`."""

  def merged(weights, adapters):
    if not isinstance(weights, Mapping):
      return _merged(lora, weights, adapters) if adapters else weights
    return {
      name: merged(value, adapters.get(name, {}))
      for name, value in weights.items()
    }

  return merged(base, adapter)


def _merged(lora: Lora, weight: jax.Array, pair: Mapping) -> jax.Array:
  a, b = pair["a"], pair["b"]
  lead = a.ndim + b.ndim - 2 - weight.ndim
  at = weight.shape[:lead]
  product = jnp.einsum(
    "...ir,...ro->...io",
    a.reshape(*at, -1, lora.rank),
    b.reshape(*at, lora.rank, -1),
  )
  product = lora.scale * product.reshape(weight.shape)
  return (weight + product).astype(weight.dtype)


class Frozen(NamedTuple):
  """What does not change while an adapter is trained; nothing without one.

  Without an adapter, `full`, `loss` and `batches` return what they are given.
  """

  lora: Lora | None = None
  base: Params | None = None

  def full(self, params: Params) -> Params:
    """The parameters of the whole model, from those that are trained."""
    if self.lora is None:
      return params
    return _jit_merge(self.lora, self.base, params)

  def loss(self, loss: Callable[[Params, Batch], Any]) -> Callable:
    """The loss of an adapter, whose microbatches are those of `batches`."""
    if self.lora is None:
      return loss
    return lambda adapter, given: loss(
      merge(self.lora, given[0], adapter), given[1]
    )

  def batches(self, batches: Iterable[Batch]) -> Iterable[Any]:
    """Microbatches with what the loss needs beside them."""
    if self.lora is None:
      return batches
    return ((self.base, batch) for batch in batches)


_jit_merge = jax.jit(merge, static_argnums=0)
NOTHING = Frozen()  # Of a run without an adapter.


def save(folder: pathlib.Path, lora: Lora, adapter: Params, base: str) -> None:
  """Writes an adapter in the layout of PEFT. All processes must call it.

  Args:
    folder: created if it does not exist.
    lora: what the adapter is.
    adapter: its parameters.
    base: the name or the path of the model, for PEFT.
  """
  values = sharding.to_host(adapter)
  if not distributed.is_first():
    return
  folder.mkdir(parents=True, exist_ok=True)
  tensors, modules = {}, set()
  for name, a, b in released(lora, values):
    module = name.removesuffix(".weight")
    modules.add(module.rpartition(".")[2])
    prefix = f"base_model.model.{module}"
    tensors[f"{prefix}.lora_A.weight"] = np.ascontiguousarray(a)
    tensors[f"{prefix}.lora_B.weight"] = np.ascontiguousarray(b)
  save_file(tensors, folder / FILES[1])
  settings = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base,
    "r": lora.rank,
    "lora_alpha": lora.alpha,
    "lora_dropout": 0.0,
    "bias": "none",
    "target_modules": sorted(modules),
    "inference_mode": True,
  }
  text = json.dumps(settings, indent=2) + "\n"
  (folder / FILES[0]).write_text(text)


def released(
  lora: Lora, adapter: Params
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
  """(name, A [rank, in], B [out, rank]) of every released matrix."""
  places = layout.by_place(lora.config)
  for names, pair in pairs(lora).items():
    values = adapter
    for name in names:
      values = values[name]
    for lead, pieces in places[".".join(names)].items():
      a = np.asarray(values["a"][lead]).reshape(-1, lora.rank).T
      for piece in pieces:
        outputs = piece.box[len(pair.inputs) :]
        b = np.asarray(values["b"][lead])[(slice(None), *outputs)]
        yield piece.tensor, a, b.reshape(lora.rank, -1).T
