"""Which released tensor holds which part of which of our arrays.

The tables below have one line per released tensor: its name within a layer,
and the array of ours that holds it, with the part that it fills where several
tensors share one array. Only here are both names known.

A released matrix is [out, in]; ours is [in..., out...], and the arrays of like
layers are stacked, so that layer and expert are leading indices.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from r1jax.models.config import Experts, Grouped, Latent, ModelConfig
from r1jax.models.weights import is_weight, weights

Box = tuple[slice, ...]  # A start and a stop for each dimension.
Place = str | tuple[str, Any]  # An array, or an array and a part of it.
# By the name of the released tensor; the parts in a list are its columns, side
# by side.
Table = dict[str, Place | list[Place]]


def latent_attention(a: Latent) -> Table:
  """DeepSeek-V2 and DeepSeek-V3."""
  rank = a.q_rank or 0
  queries: Table = {"self_attn.q_proj.weight": "q"}
  if a.q_rank is not None:
    queries = {
      "self_attn.q_a_proj.weight": ("qkv_down", np.s_[:, :rank]),
      "self_attn.q_a_layernorm.weight": "q_norm",
      "self_attn.q_b_proj.weight": "q_up",
    }
  return {
    "input_layernorm.weight": "attention_norm",
    **queries,
    "self_attn.kv_a_proj_with_mqa.weight": ("qkv_down", np.s_[:, rank:]),
    "self_attn.kv_a_layernorm.weight": "kv_norm",
    "self_attn.kv_b_proj.weight": "kv_up",
    "self_attn.o_proj.weight": "out",
    "post_attention_layernorm.weight": "feed_forward_norm",
  }


def grouped_attention(a: Grouped) -> Table:
  """Qwen2 and Llama; the third axis of `qkv` holds queries, key and value."""
  group = a.num_heads // a.num_kv_heads
  parts = {"q": np.s_[:group], "k": np.s_[-2:-1], "v": np.s_[-1:]}
  table: Table = {"input_layernorm.weight": "attention_norm"}
  for name, part in parts.items():
    table[f"self_attn.{name}_proj.weight"] = ("qkv", np.s_[:, :, part])
    if a.bias:
      table[f"self_attn.{name}_proj.bias"] = ("qkv_bias", np.s_[:, part])
  return table | {
    "self_attn.o_proj.weight": "out",
    "post_attention_layernorm.weight": "feed_forward_norm",
  }


def feed_forward(released: str, ours: str = "") -> Table:
  """SwiGLU in every architecture."""
  return {
    f"{released}.gate_proj.weight": (f"{ours}gate_up", np.s_[:, 0:1]),
    f"{released}.up_proj.weight": (f"{ours}gate_up", np.s_[:, 1:2]),
    f"{released}.down_proj.weight": f"{ours}down",
  }


def routing(e: Experts) -> Table:
  """DeepSeek-V2 and DeepSeek-V3: all of a layer but its routed experts."""
  table: Table = {"mlp.gate.weight": "router"}
  if e.biased:
    table["mlp.gate.e_score_correction_bias"] = "router_bias"
  if e.num_shared:
    table |= feed_forward("mlp.shared_experts", "shared_")
  return table


def mtp_module(width: int) -> Table:
  """DeepSeek-V3: what an MTP layer has beside its block.

  Theirs projects [embedding; hidden state], ours [hidden state; embedding].
  """
  return {
    "enorm.weight": "embed_norm",
    "hnorm.weight": "hidden_norm",
    "eh_proj.weight": [
      ("project", np.s_[width:]),
      ("project", np.s_[:width]),
    ],
    "shared_head.norm.weight": "final_norm",
  }


class Section(NamedTuple):
  """A table, and where in the checkpoint and in our tree it applies."""

  released: str  # What the released names begin with.
  ours: str  # What our paths begin with.
  lead: tuple[int, ...]  # The layer, and the expert, within our arrays.
  table: Table


def model(config: ModelConfig) -> Iterator[Section]:
  """A whole model, in the order of its layers."""
  c = config
  yield Section("model.", "", (), {"embed_tokens.weight": "embed"})
  for layer in range(c.num_layers):
    index = layer - c.num_dense_layers
    place = ("dense.", layer) if index < 0 else ("moe.", index)
    yield from block(c, f"model.layers.{layer}.", *place, sparse=index >= 0)
  yield Section("model.", "", (), {"norm.weight": "final_norm"})
  if not c.tied:
    yield Section("", "", (), {"lm_head.weight": "unembed"})
  for depth, name in enumerate(mtp_layers(c)):
    yield Section(name, "mtp.", (depth,), mtp_module(c.width))
    sparse = c.num_moe_layers > 0
    yield from block(c, name, "mtp.block.", depth, sparse=sparse)


def block(
  config: ModelConfig, name: str, path: str, index: int, *, sparse: bool
) -> Iterator[Section]:
  """One layer: attention, then its feed-forward or its experts."""
  a, e = config.attention, config.experts
  latent = isinstance(a, Latent)
  attention = latent_attention(a) if latent else grouped_attention(a)
  own = routing(e) if sparse else feed_forward("mlp")
  yield Section(name, path, (index,), attention | own)
  for expert in range(e.num_routed if sparse else 0):
    table = feed_forward(f"mlp.experts.{expert}", "expert_")
    yield Section(name, path, (index, expert), table)


def mtp_copies(config: ModelConfig) -> Iterator[Section]:
  """What MTP layers repeat of the model: written, and ignored when read."""
  head = "embed" if config.tied else "unembed"
  table = {"embed_tokens.weight": "embed", "shared_head.head.weight": head}
  for name in mtp_layers(config):
    yield Section(name, "", (), table)


def mtp_layers(config: ModelConfig) -> tuple[str, ...]:
  """What the names of the tensors of each MTP layer begin with."""
  layers = range(config.num_layers, config.num_layers + config.mtp_depth)
  return tuple(f"model.layers.{layer}." for layer in layers)


class Piece(NamedTuple):
  """A released tensor, or some columns of it, and its place in our arrays."""

  tensor: str  # "model.layers.3.self_attn.o_proj.weight"
  shape: tuple[int, ...]  # Of the whole tensor.
  columns: slice  # Of the tensor: all but in MTP's projection.
  path: str  # Of our array: "moe.out".
  lead: tuple[int, ...]  # Its layer, and expert, within the array.
  box: Box  # Of array[lead].
  axes: tuple[tuple[int, ...], ...]  # See `released_axes`.


def released_axes(path: str, ndim: int) -> tuple[tuple[int, ...], ...]:
  """Which of our axes each released dimension holds, in order.

  `ndim` counts neither layer nor expert.
  """
  name, axes = path.split(".")[-1], tuple(range(ndim))
  if name == "embed":
    return (0,), (1,)  # [V, D] on both sides.
  if name.endswith(("norm", "bias")):
    return (axes,)
  inputs = ndim - 1 if name == "out" else 1
  return axes[inputs:], axes[:inputs]


def pieces(config: ModelConfig, sections: Iterable[Section]) -> Iterator[Piece]:
  """The pieces of some sections; those of one tensor follow each other."""
  whole = shapes(config)
  for section in sections:
    for name, places in section.table.items():
      made, width = [], 0
      for place in places if isinstance(places, list) else [places]:
        path, part = place if isinstance(place, tuple) else (place, ())
        path = section.ours + path
        box = boxed(part, whole[path][len(section.lead) :])
        axes = released_axes(path, len(box))
        own = sizes(box)
        rows, *columns = (math.prod(own[a] for a in group) for group in axes)
        first, width = width, width + sum(columns)
        piece = Piece(
          tensor=section.released + name,
          shape=(rows, width) if columns else (rows,),
          columns=slice(first, width),
          path=path,
          lead=section.lead,
          box=box,
          axes=axes,
        )
        made.append(piece)
      yield from (piece._replace(shape=made[-1].shape) for piece in made)


def by_place(config: ModelConfig) -> dict[str, dict[tuple, list[Piece]]]:
  """The pieces of each of our arrays: by path, then by layer and expert."""
  places: dict[str, dict[tuple, list[Piece]]] = {
    path: {} for path in shapes(config)
  }
  for piece in pieces(config, model(config)):
    places[piece.path].setdefault(piece.lead, []).append(piece)
  return places


def by_tensor(config: ModelConfig) -> dict[str, list[Piece]]:
  """The pieces of each released tensor, copies too, in the order of layers."""
  tensors: dict[str, list[Piece]] = {}
  sections = itertools.chain(model(config), mtp_copies(config))
  for piece in pieces(config, sections):
    tensors.setdefault(piece.tensor, []).append(piece)
  return tensors


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """The shape of each of our arrays by its path."""
  leaves = jax.tree.leaves_with_path(weights(config), is_leaf=is_weight)
  return {path_name(path): weight.shape for path, weight in leaves}


def path_name(path) -> str:
  """A path in our tree as one word: "mtp.block.out"."""
  return jax.tree_util.keystr(path, simple=True, separator=".")


def boxed(index: Any, shape: tuple[int, ...]) -> Box:
  """The part of an array at `index`, made of integers and slices.

  Raises ValueError for a slice with a step.
  """
  index, box = index if isinstance(index, tuple) else (index,), []
  for at, n in itertools.zip_longest(index, shape, fillvalue=slice(None)):
    span = range(n)[at if isinstance(at, slice) else slice(at, at + 1)]
    if span.step != 1:
      raise ValueError(f"{at} has a step; only whole slices can be read")
    box.append(slice(span.start, max(span.start, span.stop)))
  return tuple(box)


def sizes(box: Box) -> tuple[int, ...]:
  """The shape of what lies in a box."""
  return tuple(span.stop - span.start for span in box)
