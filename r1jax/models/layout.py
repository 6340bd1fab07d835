"""Where each released tensor lies in our tree of parameters.

A released matrix is [out, in]; ours is [in..., out...], several of them side by
side in one array, and the arrays of like layers stacked. What is 0 numbers
large is in neither.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax

from r1jax.models.config import Latent, ModelConfig
from r1jax.models.weights import is_weight, weights

Box = tuple[slice, ...]


class Piece(NamedTuple):
  """A released tensor, or some columns of it, and its place in our tree."""

  tensor: str  # "model.layers.3.self_attn.o_proj.weight"
  shape: tuple[int, ...]  # Of the whole tensor.
  columns: slice  # Of the tensor: only MTP's projection comes in halves.
  path: str  # Of our array: "moe.attention.out".
  lead: tuple[int, ...]  # Its layer, and expert, within the array.
  box: Box  # Of array[lead].
  inputs: int  # Leading dimensions of the box that are inputs; 0: as released.

  @property
  def sizes(self) -> tuple[int, ...]:
    """Shape of the box."""
    return sizes(self.box)


def sizes(box: Box) -> tuple[int, ...]:
  """The shape of what lies in a box."""
  return tuple(span.stop - span.start for span in box)


class Group(NamedTuple):
  """Like layers: where they are stacked, and which of them this is."""

  path: str  # "dense", "moe" or "mtp.block".
  index: int


def pieces(config: ModelConfig) -> Iterator[Piece]:
  """Every piece of a model, in the order of its layers.

  The pieces of one tensor follow each other.
  """
  make = _Maker(config)
  yield make("model.embed_tokens.weight", "embed")
  for layer in range(config.num_layers):
    dense = layer < config.num_dense_layers
    first = 0 if dense else config.num_dense_layers
    group = Group("dense" if dense else "moe", layer - first)
    yield from make.block(f"model.layers.{layer}", group)
  yield make("model.norm.weight", "final_norm.scale")
  if not config.tied:
    yield make("lm_head.weight", "unembed")
  width = config.width
  for depth in range(config.mtp_depth):
    layer, lead = f"model.layers.{config.num_layers + depth}", (depth,)
    yield make(f"{layer}.enorm.weight", "mtp.embed_norm.scale", lead)
    yield make(f"{layer}.hnorm.weight", "mtp.hidden_norm.scale", lead)
    # Theirs reads [embedding; hidden], ours [hidden; embedding].
    low, high = slice(0, width), slice(width, 2 * width)
    for ours, theirs in ((high, low), (low, high)):
      half = make(f"{layer}.eh_proj.weight", "mtp.project", lead, {0: ours})
      yield half._replace(shape=(width, 2 * width), columns=theirs)
    yield from make.block(layer, Group("mtp.block", depth))
    yield make(f"{layer}.shared_head.norm.weight", "mtp.final_norm.scale", lead)


def copies(config: ModelConfig) -> Iterator[Piece]:
  """What MTP layers repeat of the model: written, and dropped when read."""
  make = _Maker(config)
  for depth in range(config.mtp_depth):
    layer = f"model.layers.{config.num_layers + depth}"
    yield make(f"{layer}.embed_tokens.weight", "embed")
    head = "embed" if config.tied else "unembed"
    yield make(f"{layer}.shared_head.head.weight", head)


def mtp_prefixes(config: ModelConfig) -> tuple[str, ...]:
  """How the names of the MTP layers' tensors begin."""
  layers = range(config.num_layers, config.num_layers + config.mtp_depth)
  return tuple(f"model.layers.{layer}." for layer in layers)


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """The shape of each of our arrays by its path."""
  leaves = jax.tree.leaves_with_path(weights(config), is_leaf=is_weight)
  return {path_name(path): weight.shape for path, weight in leaves}


def path_name(path) -> str:
  """A path in our tree as one word: "mtp.block.attention.out"."""
  return jax.tree_util.keystr(path, simple=True, separator=".")


class _Maker:
  """Makes pieces of one model."""

  def __init__(self, config: ModelConfig):
    self._config = config
    self._shapes = shapes(config)

  def __call__(
    self,
    tensor: str,
    path: str,
    lead: tuple[int, ...] = (),
    parts: dict[int, slice] = {},
  ) -> Piece:
    """A whole tensor that is `parts` of some dimensions of array[lead]."""
    whole = self._shapes[path][len(lead) :]
    spans = [
      range(n)[parts.get(axis, slice(None))] for axis, n in enumerate(whole)
    ]
    sizes = [len(span) for span in spans]
    inputs = _inputs(path, len(whole))
    rows = math.prod(sizes[inputs:])
    shape = (rows, math.prod(sizes[:inputs])) if inputs else (rows,)
    return Piece(
      tensor=tensor,
      shape=tuple(sizes) if path == "embed" else shape,
      columns=slice(None),
      path=path,
      lead=lead,
      box=tuple(slice(span.start, span.stop) for span in spans),
      inputs=inputs,
    )

  def block(self, layer: str, group: Group) -> Iterator[Piece]:
    """One layer: attention, then its feed-forward."""
    latent = isinstance(self._config.attention, Latent)
    attention = self._latent() if latent else self._grouped()
    for theirs, ours, *parts in attention:
      yield self(
        f"{layer}.{theirs}", f"{group.path}.{ours}", (group.index,), *parts
      )
    if f"{group.path}.feed_forward.router.weight" in self._shapes:
      yield from self._experts(f"{layer}.mlp", group)
    else:
      yield from self._feed_forward(f"{layer}.mlp", group, "")

  def _latent(self):
    """(theirs, ours, parts of ours) of one layer's latent attention."""
    q_rank = self._config.attention.q_rank
    yield "input_layernorm.weight", "attention_norm.scale"
    if q_rank is None:
      yield "self_attn.q_proj.weight", "attention.q"
    else:
      queries = {1: slice(0, q_rank)}
      yield "self_attn.q_a_proj.weight", "attention.qkv_down", queries
      yield "self_attn.q_a_layernorm.weight", "attention.q_norm.scale"
      yield "self_attn.q_b_proj.weight", "attention.q_up"
    latents = {1: slice(q_rank or 0, None)}
    yield "self_attn.kv_a_proj_with_mqa.weight", "attention.qkv_down", latents
    yield "self_attn.kv_a_layernorm.weight", "attention.kv_norm.scale"
    yield "self_attn.kv_b_proj.weight", "attention.kv_up"
    yield "self_attn.o_proj.weight", "attention.out"
    yield "post_attention_layernorm.weight", "feed_forward_norm.scale"

  def _grouped(self):
    """(theirs, ours, parts of ours) of one layer's grouped attention."""
    a = self._config.attention
    queries = a.num_heads // a.num_kv_heads
    yield "input_layernorm.weight", "attention_norm.scale"
    for name, first, last in (
      ("q", 0, queries),
      ("k", queries, queries + 1),
      ("v", queries + 1, queries + 2),
    ):
      part = slice(first, last)
      yield f"self_attn.{name}_proj.weight", "attention.qkv", {2: part}
      if a.bias:
        yield f"self_attn.{name}_proj.bias", "attention.qkv_bias", {1: part}
    yield "self_attn.o_proj.weight", "attention.out"
    yield "post_attention_layernorm.weight", "feed_forward_norm.scale"

  def _experts(self, mlp: str, group: Group) -> Iterator[Piece]:
    experts, lead = self._config.experts, (group.index,)
    yield self(
      f"{mlp}.gate.weight", f"{group.path}.feed_forward.router.weight", lead
    )
    if experts.biased:
      bias = f"{mlp}.gate.e_score_correction_bias"
      yield self(bias, f"{group.path}.feed_forward.router.bias", lead)
    for expert in range(experts.num_routed):
      name = f"{mlp}.experts.{expert}"
      yield from self._feed_forward(name, group, "expert_", (expert,))
    if experts.num_shared:
      yield from self._feed_forward(f"{mlp}.shared_experts", group, "shared.")

  def _feed_forward(
    self, name: str, group: Group, kind: str, expert: tuple[int, ...] = ()
  ) -> Iterator[Piece]:
    lead = (group.index, *expert)
    for theirs, ours, parts in (
      ("gate_proj", "gate_up", {1: slice(0, 1)}),
      ("up_proj", "gate_up", {1: slice(1, 2)}),
      ("down_proj", "down", {}),
    ):
      path = f"{group.path}.feed_forward.{kind}{ours}"
      yield self(f"{name}.{theirs}.weight", path, lead, parts)


def _inputs(path: str, ndim: int) -> int:
  """Leading dimensions, layer and expert not counted, that are inputs."""
  if path == "embed" or path.endswith(("scale", "bias")):
    return 0
  return ndim - 1 if path.endswith(".out") else 1


def by_place(config: ModelConfig) -> dict[str, dict[tuple, list[Piece]]]:
  """The pieces of each of our arrays: by path, then by layer and expert."""
  places: dict[str, dict[tuple, list[Piece]]] = {
    path: {} for path in shapes(config)
  }
  for piece in pieces(config):
    places[piece.path].setdefault(piece.lead, []).append(piece)
  return places


def by_tensor(config: ModelConfig) -> Iterator[list[Piece]]:
  """The pieces of each released tensor, copies too, in the order of layers."""
  every = itertools.chain(pieces(config), copies(config))
  for _, group in itertools.groupby(every, lambda piece: piece.tensor):
    yield list(group)
