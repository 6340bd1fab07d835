"""Checkpoints in Hugging Face layout <-> our parameters.

    config.json                            what the model is: `hf_config`
    model-00001-of-00002.safetensors ...   and their index: `shards`
    tokenizer.json, generation_config.json, chat template: `companions`
    provenance.json                        how it came to be, where we know

`layout` says where each tensor lies in our tree. Nothing here makes a second
copy of a model: what is read goes straight to its place, and what is written is
gathered tensor by tensor.
"""

import math
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from r1jax.models import companions, hf_config, layout, shards, transpose
from r1jax.models.config import ModelConfig, replace
from r1jax.models.layout import Piece
from r1jax.models.lazy import Lazy, boxed
from r1jax.models.shards import Plan, Reader
from r1jax.models.weights import is_router_bias, is_weight, weights
from r1jax.types import Params

Path = str | os.PathLike
Progress = Callable[[int, int], None]  # Bytes that are done, and all.
FLOATS = ("F32", "BF16", "F16")  # What parameters may be.


def load(
  path: Path,
  *,
  dtype: str = "float32",
  sharding: Any = None,
  mtp: bool = True,
  progress: Progress = lambda done, total: None,
) -> tuple[ModelConfig, Params]:
  """The config and the parameters in a directory of Hugging Face layout.

  Args:
    path: of a DeepSeek-V3, DeepSeek-V2, Qwen2 or Llama.
    dtype: of the parameters; that of the balancing bias is float32 always.
    sharding: one `jax.sharding.Sharding`, or a tree of them that begins like
      the parameters: each process then reads what its devices need. None gives
      NumPy arrays.
    mtp: False leaves the MTP layers out.
    progress: is told how many bytes are in place.

  Raises ValueError, in one line, for a model that is not one of these, and for
  a tensor that is missing, left over or of another shape.
  """
  config, arrays = find(path, dtype=dtype, mtp=mtp)
  leaves, tree = jax.tree.flatten(arrays)
  wanted = [None] * len(leaves)
  if sharding is not None:
    wanted = jax.tree.leaves(jax.tree.broadcast(sharding, arrays))
  sizes = [_local_size(*pair) for pair in zip(leaves, wanted, strict=True)]
  done, total = 0, sum(sizes)

  def advance(size: int) -> None:
    nonlocal done
    done += size
    progress(done, total)

  read = [_read(*pair, advance) for pair in zip(leaves, wanted, strict=True)]
  return config, jax.tree.unflatten(tree, read)


def find(
  path: Path, *, dtype: str = "float32", mtp: bool = True
) -> tuple[ModelConfig, Any]:
  """As `load`, but of arrays that are read only when they are sliced.

  A config that promises MTP layers of which there is no tensor at all, as
  transformers writes it, is taken to have none.
  """
  directory = pathlib.Path(path)
  config = hf_config.read(directory)
  reader = Reader(directory, hf_config.float8_block(directory))
  beyond = layout.mtp_prefixes(config)
  known = set()
  if not mtp or not any(name.startswith(beyond) for name in reader.tensors):
    known = {name for name in reader.tensors if name.startswith(beyond)}
    config = replace(config, mtp_depth=0)
  known |= {piece.tensor for piece in layout.copies(config)}
  if config.tied:
    known.add("lm_head.weight")
  for piece in layout.pieces(config):
    _check_tensor(reader, piece)
    known.add(piece.tensor)
  for name in sorted(reader.tensors.keys() - known):
    if name.removesuffix(shards.SCALES) not in known:
      raise ValueError(
        f"unknown tensor {name} in {reader.tensors[name].file}; config.json "
        "describes a model without it"
      )
  places = layout.by_place(config)
  return config, jax.tree.map_with_path(
    lambda path, weight: Lazy(
      reader,
      weight.shape,
      _dtype("float32" if is_router_bias(path) else dtype),
      places[layout.path_name(path)],
    ),
    weights(config),
    is_leaf=is_weight,
  )


def _dtype(name: str) -> np.dtype:
  """Raises ValueError unless parameters can be of it."""
  known = {dtype.name: dtype for dtype in map(shards.DTYPES.get, FLOATS)}
  if name not in known:
    raise ValueError(f"dtype {name!r} is none of {', '.join(known)}")
  return known[name]


def _check_tensor(reader: Reader, piece: Piece) -> None:
  stored = reader.tensors.get(piece.tensor)
  if stored is None:
    raise ValueError(
      f"tensor {piece.tensor} is missing from {reader.directory}; config.json "
      f"asks for it, with shape {piece.shape}"
    )
  if stored.shape != piece.shape:
    raise ValueError(
      f"tensor {piece.tensor} in {stored.file} is {stored.shape}, not "
      f"{piece.shape} as config.json has it"
    )
  if stored.dtype == shards.DTYPES["F8_E4M3"]:
    reader.scales(piece.tensor)


def _local_size(array: Lazy, sharding: jax.sharding.Sharding | None) -> int:
  """Bytes of an array that this process reads."""
  if sharding is None:
    return math.prod(array.shape) * array.dtype.itemsize
  indices = sharding.addressable_devices_indices_map(array.shape).values()
  boxes = {_hashable(boxed(index, array.shape)) for index in indices}
  numbers = sum(math.prod(b - a for a, b in box) for box in boxes)
  return numbers * array.dtype.itemsize


def _read(
  array: Lazy,
  sharding: jax.sharding.Sharding | None,
  advance: Callable[[int], None],
) -> np.ndarray | jax.Array:
  if sharding is None:
    return array.read((), advance)
  read: dict[tuple, np.ndarray] = {}

  def fetch(index):
    key = _hashable(boxed(index, array.shape))
    if key not in read:  # Once for all the devices that hold the same.
      read[key] = array.read(index, advance)
    return read[key]

  return jax.make_array_from_callback(
    array.shape, sharding, fetch, dtype=array.dtype
  )


def _hashable(box: layout.Box) -> tuple:
  return tuple((span.start, span.stop) for span in box)


def save(
  directory: Path,
  config: ModelConfig,
  params: Params,
  *,
  tokenizer: Path | None = None,
  provenance: Mapping[str, Any] | None = None,
  dtype: str | None = None,
  shard_bytes: int | float = 5e9,
  progress: Progress = lambda done, total: None,
) -> None:
  """Writes a model in the released layout, for any reader of it.

  It takes the place of a model that is in `directory` already, and only when
  all of it is written. Of several processes all call this, and one writes.

  Args:
    directory: is made.
    config: must be of one of the released architectures.
    params: arrays, NumPy's, JAX's or `find`'s; gathered a tensor at a time.
    tokenizer: a directory whose tokenizer, chat template and
      generation_config.json are copied.
    provenance: goes into provenance.json, after the digests of the files.
    dtype: of the tensors; None keeps that of the parameters. That of the
      balancing bias is float32 always.
    shard_bytes: the most that one file holds.
    progress: is told how many bytes are written.

  Raises ValueError if `directory` holds something else than a model.
  """
  target = pathlib.Path(directory).absolute()
  _check_target(target)
  arrays = _named(config, params)
  kept = {
    path: _dtype(
      "float32" if path.endswith("router.bias") else dtype or array.dtype.name
    )
    for path, array in arrays.items()
  }
  groups = {group[0].tensor: group for group in layout.by_tensor(config)}
  plans = [
    Plan(name, group[0].shape, kept[group[0].path])
    for name, group in groups.items()
  ]
  fetch = _Fetch(arrays)
  make = lambda plan: _gather(plan, groups[plan.name], fetch)
  settings = hf_config.released(config, dtype=kept["embed"].name)
  if jax.process_index():
    for plan in plans:
      make(plan)
    return
  draft = target.with_name(f".{target.name}.draft")
  shutil.rmtree(draft, ignore_errors=True)
  draft.mkdir(parents=True)
  try:
    ids = dict.fromkeys(companions.TOKENS)
    if tokenizer is not None:
      ids = companions.copy(pathlib.Path(tokenizer), draft)
    companions.write_json(draft / "config.json", settings | ids)
    digests = shards.write(
      draft,
      plans,
      make,
      shard_bytes=shard_bytes,
      hashed=provenance is not None,
      progress=progress,
    )
    if provenance is not None:
      named = {f"{name} sha256": value for name, value in digests.items()}
      companions.write_json(draft / "provenance.json", named | dict(provenance))
    _swap(draft, target)
  finally:
    shutil.rmtree(draft, ignore_errors=True)


def _check_target(target: pathlib.Path) -> None:
  if not target.exists() or (target.is_dir() and not any(target.iterdir())):
    return
  config = target / "config.json"
  if target.is_dir() and "architectures" in companions.read_json(config):
    return
  raise ValueError(
    f"{target} holds something else than a model; choose another"
  )


def _swap(draft: pathlib.Path, target: pathlib.Path) -> None:
  """Puts the directory `draft` in the place of `target`."""
  aside = target.with_name(f".{target.name}.old")
  shutil.rmtree(aside, ignore_errors=True)
  if target.exists():
    os.rename(target, aside)
  os.rename(draft, target)
  shutil.rmtree(aside, ignore_errors=True)


def _named(config: ModelConfig, params: Params) -> dict[str, Any]:
  """The arrays of `params` by path; raises ValueError unless all are there."""
  arrays = {
    layout.path_name(path): array
    for path, array in jax.tree.leaves_with_path(params)
  }
  wanted = layout.shapes(config)
  for path in sorted(arrays.keys() | wanted.keys()):
    found = tuple(arrays[path].shape) if path in arrays else "missing"
    if path not in wanted or found != wanted[path]:
      raise ValueError(
        f"parameter {path} is {found}; the config asks for "
        f"{wanted.get(path, 'none')}"
      )
  return arrays


class _Fetch:
  """One piece after another, on the host."""

  def __init__(self, arrays: Mapping[str, Any]):
    self._arrays = dict(arrays)
    self._layer: tuple | None = None
    self._recent: dict[str, tuple[tuple, np.ndarray]] = {}

  def __call__(self, piece: Piece) -> np.ndarray:
    """The box of a piece; what leaves a device is kept for its layer."""
    array = self._arrays[piece.path]
    if not isinstance(array, jax.Array):
      return np.asarray(array[(*piece.lead, *piece.box)])
    if self._layer != piece.lead[:1]:
      self._layer = piece.lead[:1]
      self._recent.clear()
    if self._recent.get(piece.path, (None,))[0] != piece.lead:
      self._recent.pop(piece.path, None)
      self._recent[piece.path] = piece.lead, on_host(array, piece.lead)
    return self._recent[piece.path][1][piece.box]


def on_host(array: jax.Array, lead: tuple[int, ...]) -> np.ndarray:
  """array[lead] as NumPy's; all processes must ask for the same."""
  if not array.is_fully_addressable:
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array[lead], tiled=True)
  block = np.empty(array.shape[len(lead) :], array.dtype)
  for shard in array.addressable_shards:
    held = boxed(shard.index, array.shape)
    spans = list(zip(lead, held))
    if shard.replica_id == 0 and all(s.start <= i < s.stop for i, s in spans):
      place = tuple(i - s.start for i, s in spans)
      block[held[len(lead) :]] = _slice(shard.data, place)
  return block


def _slice(array: jax.Array, lead: tuple[int, ...]) -> np.ndarray:
  """array[lead] of an array on one device; only that leaves it."""
  if next(iter(array.devices())).platform == "cpu":
    return np.asarray(array)[lead]  # It is there already.
  return np.asarray(array[lead])


def _gather(
  plan: Plan, pieces: list[Piece], fetch: Callable[[Piece], np.ndarray]
) -> np.ndarray:
  """A released tensor, from the places of its pieces."""
  tensor = np.empty(plan.shape, plan.dtype)
  for piece in pieces:
    ins, outs = piece.sizes[: piece.inputs], piece.sizes[piece.inputs :]
    part = tensor[:, piece.columns] if piece.inputs else tensor
    part = part.reshape(*outs, *ins)
    inputs_first = [*range(len(outs), part.ndim), *range(len(outs))]
    source = fetch(piece).astype(plan.dtype, copy=False)
    transpose.copy(part.transpose(inputs_first), source)
  return tensor
