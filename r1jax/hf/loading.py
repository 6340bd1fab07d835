"""Loads the config and the parameters of a model in Hugging Face layout."""

import functools
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from r1jax.hf import config as configs
from r1jax.hf import gguf_files, layout
from r1jax.hf.arrays import LazyArray, split
from r1jax.hf.layout import Box, Piece, boxed, sizes
from r1jax.hf.tensors import NamedTensors, open_folder
from r1jax.models.config import ModelConfig, float_name, replace
from r1jax.models.weights import is_router_bias, weights
from r1jax.types import Params

Path = str | os.PathLike
Progress = Callable[[int, int], None]  # Bytes done, bytes in total.
CHUNK = 1 << 26  # Bytes that are in host memory on their way to a device.
BIAS = ".router.bias"  # Always float32, whatever the dtype of other parameters.
# Buffers in older checkpoints that we compute from the config instead.
RECOMPUTED = ".rotary_emb."


def load(
  path: Path,
  *,
  dtype: Any = "float32",
  sharding: Any = None,
  mtp: bool = True,
  progress: Progress = lambda done, total: None,
) -> tuple[ModelConfig, Params]:
  """The config and the parameters of the model in a directory.

  Args:
    path: directory of a DeepSeek-V3, DeepSeek-V2, Qwen2 or Llama model, or a
      GGUF file of one of the latter two.
    dtype: of the parameters: float32, bfloat16 or float16, in any form that
      `jnp.dtype` accepts. The balancing bias is always float32.
    sharding: see `read`.
    mtp: whether to load the MTP layers.
    progress: called with the number of bytes done, and the total.

  Raises ValueError for an architecture that is not one of these, and for a
  tensor that is missing, unknown, or of another shape.
  """
  config, arrays = open_model(path, dtype=dtype, mtp=mtp)
  return config, read(arrays, sharding, progress)


def read(
  arrays: Any,
  sharding: Any = None,
  progress: Progress = lambda done, total: None,
) -> Params:
  """The parameters that `open_model` has opened.

  Args:
    arrays: a tree of `LazyArray`s.
    sharding: a `jax.sharding.Sharding`, or a prefix tree of them. Each process
      then reads only what its devices hold, and has about CHUNK bytes of it in
      host memory at once. None for NumPy arrays.
    progress: called with the number of bytes done, and the total.
  """
  leaves, tree = jax.tree.flatten(arrays)
  shardings = [None] * len(leaves)
  if sharding is not None:
    shardings = jax.tree.leaves(jax.tree.broadcast(sharding, arrays))
  groups = [_parts(*pair) for pair in zip(leaves, shardings, strict=True)]
  done, total = (
    0,
    sum(
      array.dtype.itemsize * math.prod(sizes(box))
      for array, parts in zip(leaves, groups)
      for box, _ in parts
    ),
  )

  def advance(size: int) -> None:
    nonlocal done
    done += size
    progress(done, total)

  # Parts are written on one device each, not on the mesh of the context.
  with jax.set_mesh(Mesh(np.empty((), object), ())):
    filled = [_read(*each, advance) for each in zip(leaves, shardings, groups)]
  return jax.tree.unflatten(tree, filled)


def open_model(
  path: Path, *, dtype: Any = "float32", mtp: bool = True
) -> tuple[ModelConfig, Any]:
  """The config, and the parameters as `LazyArray`s; see `load`.

  If config.json announces MTP layers but the files hold none of their tensors,
  as transformers writes them, the returned config has no MTP layers.
  """
  dtype = jnp.dtype(float_name(dtype))
  if gguf_files.is_gguf(path):
    folder = pathlib.Path(path)
    config = configs.parse(gguf_files.settings(folder), str(path))
    tensors = gguf_files.open_file(folder)
  else:
    folder = configs.directory(path)
    config = configs.read(folder)
    tensors = open_folder(folder, configs.float8_block(folder))
  mtp_layers, known = layout.mtp_layers(config), set()
  if not mtp or not any(name.startswith(mtp_layers) for name in tensors):
    known = {name for name in tensors if name.startswith(mtp_layers)}
    config = replace(config, mtp_depth=0)
  copies = layout.pieces(config, layout.mtp_copies(config))
  known |= {piece.tensor for piece in copies}
  if config.tied:
    known.add("lm_head.weight")
  places = layout.by_place(config)
  for by_lead in places.values():
    for piece in (piece for pieces in by_lead.values() for piece in pieces):
      _check_tensor(folder, tensors, piece)
      known.add(piece.tensor)
  for name in sorted(tensors.keys() - known):
    if RECOMPUTED not in name:
      raise ValueError(
        f"unknown tensor {name} in {tensors[name].file}; config.json "
        "describes a model without it"
      )
  return config, jax.tree.map_with_path(
    lambda path, weight: LazyArray(
      tensors,
      weight.shape,
      jnp.dtype("float32") if is_router_bias(path) else dtype,
      places[layout.path_name(path)],
    ),
    weights(config),
  )


def _check_tensor(
  folder: pathlib.Path, tensors: NamedTensors, piece: Piece
) -> None:
  """Raises ValueError unless the tensor of a piece exists and fits."""
  tensor = tensors.get(piece.tensor)
  if tensor is None:
    raise ValueError(
      f"tensor {piece.tensor} is missing from {folder}; config.json asks for "
      f"it, with shape {piece.shape}"
    )
  if tensor.shape != piece.shape:
    raise ValueError(
      f"tensor {piece.tensor} in {tensor.file} is {tensor.shape}, not "
      f"{piece.shape} as config.json has it"
    )
  if not jnp.issubdtype(tensor.dtype, jnp.floating):
    raise ValueError(
      f"tensor {piece.tensor} in {tensor.file} is {tensor.dtype}; a weight is "
      "a floating-point number"
    )


def _parts(array: LazyArray, sharding: Sharding | None):
  """The boxes of an array that this process reads, each with its devices."""
  if sharding is None:
    return [(boxed((), array.shape), [])]
  devices: dict[tuple, list[jax.Device]] = {}
  indices = sharding.addressable_devices_indices_map(array.shape)
  for device, index in indices.items():
    box = boxed(index, array.shape)
    key = tuple((span.start, span.stop) for span in box)
    devices.setdefault(key, []).append(device)
  return [
    (tuple(slice(*ends) for ends in key), held) for key, held in devices.items()
  ]


def _read(
  array: LazyArray,
  sharding: Sharding | None,
  parts: list,
  advance: Callable[[int], None],
) -> np.ndarray | jax.Array:
  """The array, read to NumPy, or to devices by its sharding."""
  if sharding is None:
    ((box, _),) = parts
    return array.read(box, advance)
  placed = []
  for box, devices in parts:
    places = [
      SingleDeviceSharding(device, memory_kind=sharding.memory_kind)
      for device in devices
    ]
    placed += _to_devices(array, box, places, advance)
  return jax.make_array_from_single_device_arrays(array.shape, sharding, placed)


def _to_devices(
  array: LazyArray,
  box: Box,
  places: list[Sharding],
  advance: Callable[[int], None],
) -> list[jax.Array]:
  """The part in `box`, read once and copied to each of `places`."""
  most = CHUNK // array.dtype.itemsize
  if math.prod(sizes(box)) <= most:
    values = array.read(box, advance)
    # Copied, as a buffer that belongs to NumPy could not be donated.
    put = functools.partial(jax.device_put, values, may_alias=False)
    return jax.block_until_ready([put(place) for place in places])
  held = [jnp.zeros(sizes(box), array.dtype, device=place) for place in places]
  for chunk in split(box, most):
    start = [a.start - b.start for a, b in zip(chunk, box, strict=True)]
    values = array.read(chunk, advance)
    held = [_write(whole, values, start) for whole in held]
    jax.block_until_ready(held)  # Keeps only one chunk in host memory.
  return held


@functools.partial(jax.jit, donate_argnums=0)
def _write(whole: jax.Array, part: jax.Array, start: list) -> jax.Array:
  return jax.lax.dynamic_update_slice(whole, part, start)
