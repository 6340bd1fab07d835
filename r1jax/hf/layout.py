"""The mapping between released tensors and the arrays of our parameters.

The tables below have one entry per released tensor: its name within a layer,
and the array of ours that holds it. If several tensors share one array, the
entry also says which part of the array the tensor fills. No other module knows
the names of both sides.

Released matrices are [out, in]; ours are [in..., out...]. Our arrays stack the
layers, and the experts of a layer, as leading dimensions.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from r1jax.models.config import Experts, Grouped, Latent, ModelConfig
from r1jax.models.weights import weights

Box = tuple[slice, ...]  # A start and a stop for each dimension.
Place = str | tuple[str, Any]  # The path of an array, or a path and an index.
# Places by the name of the released tensor. The columns of a tensor may be
# divided among a list of places.
Table = dict[str, Place | list[Place]]


def latent_attention(a: Latent) -> Table:
  """Latent attention and norms of a layer of DeepSeek-V2 and DeepSeek-V3."""
  rank, down = a.q_rank or 0, "attention.qkv_down"
  queries: Table = {"self_attn.q_proj.weight": "attention.q"}
  if a.q_rank is not None:
    queries = {
      "self_attn.q_a_proj.weight": (down, np.s_[:, :rank]),
      "self_attn.q_a_layernorm.weight": "attention.q_norm.scale",
      "self_attn.q_b_proj.weight": "attention.q_up",
    }
  return {
    "input_layernorm.weight": "attention_norm.scale",
    **queries,
    "self_attn.kv_a_proj_with_mqa.weight": (
      "attention.qkv_down",
      np.s_[:, rank:],
    ),
    "self_attn.kv_a_layernorm.weight": "attention.kv_norm.scale",
    "self_attn.kv_b_proj.weight": "attention.kv_up",
    "self_attn.o_proj.weight": "attention.out",
    "post_attention_layernorm.weight": "feed_forward_norm.scale",
  }


def grouped_attention(a: Grouped) -> Table:
  """Grouped-query attention and norms of a layer of Qwen2 and Llama.

  The third axis of `qkv` holds the queries of a key/value head, its key and its
  value.
  """
  group = a.num_heads // a.num_kv_heads
  parts = {"q": np.s_[:group], "k": np.s_[-2:-1], "v": np.s_[-1:]}
  table: Table = {"input_layernorm.weight": "attention_norm.scale"}
  for name, part in parts.items():
    table[f"self_attn.{name}_proj.weight"] = (
      "attention.qkv",
      np.s_[:, :, part],
    )
    if a.bias:
      table[f"self_attn.{name}_proj.bias"] = (
        "attention.qkv_bias",
        np.s_[:, part],
      )
  return table | {
    "self_attn.o_proj.weight": "attention.out",
    "post_attention_layernorm.weight": "feed_forward_norm.scale",
  }


def feed_forward(released: str, ours: str = "feed_forward.") -> Table:
  """A SwiGLU feed-forward layer, in every architecture."""
  return {
    f"{released}.gate_proj.weight": (f"{ours}gate_up", np.s_[:, 0:1]),
    f"{released}.up_proj.weight": (f"{ours}gate_up", np.s_[:, 1:2]),
    f"{released}.down_proj.weight": f"{ours}down",
  }


def routing(e: Experts) -> Table:
  """The router and the shared experts of DeepSeek-V2 and DeepSeek-V3."""
  table: Table = {"mlp.gate.weight": "feed_forward.router.weight"}
  if e.biased:
    table["mlp.gate.e_score_correction_bias"] = "feed_forward.router.bias"
  if e.num_shared:
    table |= feed_forward("mlp.shared_experts", "feed_forward.shared.")
  return table


def mtp_module(width: int) -> Table:
  """The weights of an MTP layer of DeepSeek-V3, apart from its block.

  The released projection takes [embedding; hidden state], ours takes [hidden
  state; embedding].
  """
  return {
    "enorm.weight": "embed_norm.scale",
    "hnorm.weight": "hidden_norm.scale",
    "eh_proj.weight": [
      ("project", np.s_[width:]),
      ("project", np.s_[:width]),
    ],
    "shared_head.norm.weight": "final_norm.scale",
  }


class Section(NamedTuple):
  """A table, applied to one layer, one expert, or the whole model."""

  released: str  # Prefix of the released names.
  ours: str  # Prefix of our paths.
  lead: tuple[int, ...]  # Leading indices of our arrays: layer, expert.
  table: Table


def model(config: ModelConfig) -> Iterator[Section]:
  """The sections of a whole model, in the order of its layers."""
  c = config
  yield Section("model.", "", (), {"embed_tokens.weight": "embed"})
  for layer in range(c.num_layers):
    index = layer - c.num_dense_layers
    place = ("dense.", layer) if index < 0 else ("moe.", index)
    yield from block(c, f"model.layers.{layer}.", *place, sparse=index >= 0)
  yield Section("model.", "", (), {"norm.weight": "final_norm.scale"})
  if not c.tied:
    yield Section("", "", (), {"lm_head.weight": "unembed"})
  for depth, name in enumerate(mtp_layers(c)):
    yield Section(name, "mtp.", (depth,), mtp_module(c.width))
    sparse = c.num_moe_layers > 0
    yield from block(c, name, "mtp.block.", depth, sparse=sparse)


def block(
  config: ModelConfig, name: str, path: str, index: int, *, sparse: bool
) -> Iterator[Section]:
  """The sections of one layer: attention and feed-forward, then the experts.

  Args:
    config: of the model.
    name: prefix of the released names.
    path: prefix of our paths.
    index: of the layer in our arrays.
    sparse: whether the layer has experts.
  """
  a, e = config.attention, config.experts
  latent = isinstance(a, Latent)
  attention = latent_attention(a) if latent else grouped_attention(a)
  rest = routing(e) if sparse else feed_forward("mlp")
  yield Section(name, path, (index,), attention | rest)
  for expert in range(e.num_routed if sparse else 0):
    table = feed_forward(f"mlp.experts.{expert}", "feed_forward.expert_")
    yield Section(name, path, (index, expert), table)


def mtp_copies(config: ModelConfig) -> Iterator[Section]:
  """The tensors that MTP layers repeat from the model.

  They are written, and ignored when read.
  """
  head = "embed" if config.tied else "unembed"
  table = {"embed_tokens.weight": "embed", "shared_head.head.weight": head}
  for name in mtp_layers(config):
    yield Section(name, "", (), table)


def mtp_layers(config: ModelConfig) -> tuple[str, ...]:
  """The prefixes of the released names of each MTP layer."""
  layers = range(config.num_layers, config.num_layers + config.mtp_depth)
  return tuple(f"model.layers.{layer}." for layer in layers)


class Piece(NamedTuple):
  """A released tensor, or some of its columns, and its place in our arrays."""

  tensor: str  # "model.layers.3.self_attn.o_proj.weight"
  shape: tuple[int, ...]  # Of the whole tensor.
  columns: slice  # Of the tensor; all, except in the projection of MTP.
  path: str  # Of our array: "moe.attention.out".
  lead: tuple[int, ...]  # Leading indices of our array: layer, expert.
  box: Box  # The part of array[lead].
  axes: tuple[tuple[int, ...], ...]  # See `released_axes`.


def released_axes(path: str, ndim: int) -> tuple[tuple[int, ...], ...]:
  """Our axes that each dimension of the released tensor holds, in order.

  `ndim` is that of our array without the leading dimensions for layer and
  expert.
  """
  name, axes = path.split(".")[-1], tuple(range(ndim))
  if name == "embed":
    return (0,), (1,)  # [V, D] on both sides.
  if name.endswith(("scale", "bias")):
    return (axes,)
  inputs = ndim - 1 if name == "out" else 1
  return axes[inputs:], axes[:inputs]


def pieces(config: ModelConfig, sections: Iterable[Section]) -> Iterator[Piece]:
  """The pieces of some sections; those of one tensor are consecutive."""
  array_shapes = shapes(config)
  for section in sections:
    for name, places in section.table.items():
      of_tensor, width = [], 0
      for place in places if isinstance(places, list) else [places]:
        path, part = place if isinstance(place, tuple) else (place, ())
        path = section.ours + path
        box = boxed(part, array_shapes[path][len(section.lead) :])
        axes = released_axes(path, len(box))
        size = sizes(box)
        rows, *columns = (math.prod(size[a] for a in group) for group in axes)
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
        of_tensor.append(piece)
      # The width of the tensor is known after its last piece.
      shape = of_tensor[-1].shape
      yield from (piece._replace(shape=shape) for piece in of_tensor)


def by_place(config: ModelConfig) -> dict[str, dict[tuple, list[Piece]]]:
  """The pieces of each of our arrays, by path and then by `Piece.lead`."""
  places: dict[str, dict[tuple, list[Piece]]] = {
    path: {} for path in shapes(config)
  }
  for piece in pieces(config, model(config)):
    places[piece.path].setdefault(piece.lead, []).append(piece)
  return places


def by_tensor(config: ModelConfig) -> dict[str, list[Piece]]:
  """The pieces of each released tensor, `mtp_copies` included."""
  tensors: dict[str, list[Piece]] = {}
  sections = itertools.chain(model(config), mtp_copies(config))
  for piece in pieces(config, sections):
    tensors.setdefault(piece.tensor, []).append(piece)
  return tensors


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """The shape of each of our arrays, by path."""
  leaves = jax.tree.leaves_with_path(weights(config))
  return {path_name(path): weight.shape for path, weight in leaves}


def path_name(path) -> str:
  """A path in our tree as a string: "mtp.block.attention.out"."""
  return jax.tree_util.keystr(path, simple=True, separator=".")


def boxed(index: Any, shape: tuple[int, ...]) -> Box:
  """The box that `index`, of integers and slices, selects from an array.

  An integer selects a slice of size 1. Raises ValueError for a slice with a
  step.
  """
  index, box = index if isinstance(index, tuple) else (index,), []
  for at, n in itertools.zip_longest(index, shape, fillvalue=slice(None)):
    span = range(n)[at if isinstance(at, slice) else slice(at, at + 1)]
    if span.step != 1:
      raise ValueError(f"{at} has a step; only whole slices can be read")
    box.append(slice(span.start, max(span.start, span.stop)))
  return tuple(box)


def sizes(box: Box) -> tuple[int, ...]:
  """The shape of a box."""
  return tuple(span.stop - span.start for span in box)
