"""Saves a model as a directory in Hugging Face layout.

config.json                            the config of the model
model-00001-of-00002.safetensors ...   its tensors, and their index
tokenizer.json, generation_config.json, chat template
provenance.json                        how the model was trained, if known
"""

import functools
import hashlib
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.hf import config as configs
from r1jax.hf import layout, tokenizer_files, transpose
from r1jax.hf.arrays import arranged
from r1jax.hf.layout import Piece, boxed, sizes
from r1jax.hf.loading import BIAS, Path, Progress
from r1jax.hf.tensors import write
from r1jax.models.config import ModelConfig, float_name
from r1jax.parallel.sharding import block_to_host
from r1jax.types import Params


def save(
  directory: Path,
  config: ModelConfig,
  params: Params,
  *,
  tokenizer: Path | None = None,
  provenance: Mapping[str, Any] | None = None,
  dtype: Any = None,
  file_bytes: int | float = 5e9,
  progress: Progress = lambda done, total: None,
) -> None:
  """Writes a model to `directory`, replacing any model there once complete.

  All processes of a job must call it. Process 0 writes.

  Args:
    directory: created if it does not exist.
    config: must have one of the released architectures.
    params: arrays of NumPy, of JAX or from `open_model`. They are gathered and
      written one tensor at a time.
    tokenizer: a directory whose tokenizer, chat template and
      generation_config.json are copied.
    provenance: written to provenance.json, after the digests of the files.
    dtype: of the tensors, in any form that `jnp.dtype` accepts; None for that
      of the parameters. The balancing bias is always float32.
    file_bytes: the most that one file holds, unless a single tensor is larger.
    progress: called with the number of bytes gathered, and the total.

  Raises ValueError if `directory` holds anything but a model, and if `params`
  do not fit `config`.
  """
  target = pathlib.Path(directory).absolute()
  _check_target(target)
  arrays = _named(config, params)
  dtypes = {
    path: jnp.dtype(
      "float32"
      if path.endswith(BIAS)
      else float_name(array.dtype if dtype is None else dtype)
    )
    for path, array in arrays.items()
  }
  pieces = layout.by_tensor(config)
  tensors = {
    name: jax.ShapeDtypeStruct(group[0].shape, dtypes[group[0].path])
    for name, group in pieces.items()
  }
  # Consecutive tensors are often parts of the same array, as queries, keys and
  # values are. The cache gathers such an array once.
  block = functools.lru_cache(maxsize=4)(
    lambda path, lead: on_host(arrays[path], lead)
  )
  make = lambda name: _gather(tensors[name], pieces[name], block)
  settings = configs.released(config, dtype=dtypes["embed"])
  if jax.process_index():  # Takes part in gathering, in the same order.
    for name in tensors:
      for piece in pieces[name]:
        block(piece.path, piece.lead)
    return
  draft = target.with_name(f".{target.name}.draft")
  shutil.rmtree(draft, ignore_errors=True)
  draft.mkdir(parents=True)
  try:
    ids = dict.fromkeys(tokenizer_files.TOKENS)
    if tokenizer is not None:
      ids = tokenizer_files.copy(pathlib.Path(tokenizer), draft)
    configs.write_json(draft / "config.json", settings | ids)
    write(draft, tensors, make, file_bytes=file_bytes, progress=progress)
    if provenance is not None:
      digests = {
        f"{file.name} sha256": _digest(file)
        for file in sorted(draft.glob("*.safetensors"))
      }
      configs.write_json(draft / "provenance.json", digests | dict(provenance))
    _swap(draft, target)
  finally:
    shutil.rmtree(draft, ignore_errors=True)


def _check_target(target: pathlib.Path) -> None:
  """Raises ValueError unless `target` is absent, empty, or holds a model."""
  if not target.exists() or (target.is_dir() and not any(target.iterdir())):
    return
  config = target / "config.json"
  if target.is_dir() and "architectures" in configs.read_json(config):
    return
  raise ValueError(
    f"{target} is not the directory of a model; choose another directory"
  )


def _digest(file: pathlib.Path) -> str:
  with open(file, "rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()


def _swap(draft: pathlib.Path, target: pathlib.Path) -> None:
  """Replaces the directory `target` by `draft`."""
  aside = target.with_name(f".{target.name}.old")
  shutil.rmtree(aside, ignore_errors=True)
  if target.exists():
    os.rename(target, aside)
  os.rename(draft, target)
  shutil.rmtree(aside, ignore_errors=True)


def _named(config: ModelConfig, params: Params) -> dict[str, Any]:
  """The arrays of `params` by path; raises ValueError unless they fit."""
  arrays = {
    layout.path_name(path): array
    for path, array in jax.tree.leaves_with_path(params)
  }
  expected = layout.shapes(config)
  for path in sorted(arrays.keys() | expected.keys()):
    shape = tuple(arrays[path].shape) if path in arrays else "missing"
    if path not in expected or shape != expected[path]:
      raise ValueError(
        f"parameter {path} is {shape}; the config asks for "
        f"{expected.get(path, 'none')}"
      )
  return arrays


def on_host(array: Any, lead: tuple[int, ...]) -> np.ndarray:
  """array[lead] in NumPy. All processes must ask for the same `lead`."""
  if not isinstance(array, jax.Array):
    return np.asarray(array[lead])
  if not array.is_fully_addressable:
    return block_to_host(array, lead)
  block = np.empty(array.shape[len(lead) :], array.dtype)
  for shard in array.addressable_shards:
    held = boxed(shard.index, array.shape)
    spans = list(zip(lead, held))
    if shard.replica_id == 0 and all(s.start <= i < s.stop for i, s in spans):
      place = tuple(i - s.start for i, s in spans)
      block[held[len(lead) :]] = _slice(shard.data, place)
  return block


def _slice(array: jax.Array, lead: tuple[int, ...]) -> np.ndarray:
  """array[lead] of an array on one device, without copying the rest of it."""
  if next(iter(array.devices())).platform == "cpu":
    return np.asarray(array)[lead]  # A view: the array is in host memory.
  return np.asarray(array[lead])


def _gather(
  like: jax.ShapeDtypeStruct,
  pieces: list[Piece],
  block: Callable[[str, tuple[int, ...]], np.ndarray],
) -> np.ndarray:
  """A released tensor, put together from its pieces.

  `block(path, lead)` returns array[lead] of the array at a path.
  """
  tensor = np.empty(like.shape, like.dtype)
  for piece in pieces:
    whole = boxed((), sizes(piece.box))
    source = block(piece.path, piece.lead)[piece.box]
    place = arranged(tensor.__getitem__, piece, whole)
    transpose.copy(place, source.astype(like.dtype, copy=False))
  return tensor
