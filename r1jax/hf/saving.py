"""A model as a directory in Hugging Face layout, for any reader of it.

config.json                            what the model is
model-00001-of-00002.safetensors ...   its tensors, and their index
tokenizer.json, generation_config.json, chat template
provenance.json                        how it came to be, where known
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
from r1jax.hf.layout import Piece, boxed
from r1jax.hf.loading import BIAS, Path, Progress
from r1jax.hf.tensors import Plan, write
from r1jax.models.config import ModelConfig, float_name
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
  """Writes a model; it replaces the one in `directory` once it is complete.

  Of several processes all call this, and the first writes.

  Args:
    directory: is made.
    config: must be of one of the released architectures.
    params: arrays of NumPy, of JAX or of `open_model`; gathered one tensor at a
      time.
    tokenizer: a directory whose tokenizer, chat template and
      generation_config.json are copied.
    provenance: goes into provenance.json, after the digests of the files.
    dtype: of the tensors, as `jnp.dtype` takes it; None keeps that of the
      parameters. The balancing bias is always float32.
    file_bytes: the most that one file holds, unless a single tensor is larger;
      this much is in the memory of the first process.
    progress: called with the number of bytes that are gathered, and of all.

  Raises ValueError if `directory` holds something else than a model.
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
  plans = [
    Plan(name, group[0].shape, dtypes[group[0].path])
    for name, group in pieces.items()
  ]
  # Pieces of one layer are parts of a few arrays: each is gathered once.
  block = functools.lru_cache(maxsize=4)(
    lambda path, lead: on_host(arrays[path], lead)
  )
  make = lambda plan: _gather(plan, pieces[plan.name], block)
  settings = configs.released(config, dtype=dtypes["embed"])
  if jax.process_index():
    for plan in plans:
      make(plan)
    return
  draft = target.with_name(f".{target.name}.draft")
  shutil.rmtree(draft, ignore_errors=True)
  draft.mkdir(parents=True)
  try:
    ids = dict.fromkeys(tokenizer_files.TOKENS)
    if tokenizer is not None:
      ids = tokenizer_files.copy(pathlib.Path(tokenizer), draft)
    configs.write_json(draft / "config.json", settings | ids)
    write(draft, plans, make, file_bytes=file_bytes, progress=progress)
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
  if not target.exists() or (target.is_dir() and not any(target.iterdir())):
    return
  config = target / "config.json"
  if target.is_dir() and "architectures" in configs.read_json(config):
    return
  raise ValueError(
    f"{target} holds something else than a model; choose another directory"
  )


def _digest(file: pathlib.Path) -> str:
  with open(file, "rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()


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


def on_host(array: Any, lead: tuple[int, ...]) -> np.ndarray:
  """array[lead] as NumPy's; all processes must ask for the same."""
  if not isinstance(array, jax.Array):
    return np.asarray(array[lead])
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
  plan: Plan,
  pieces: list[Piece],
  block: Callable[[str, tuple[int, ...]], np.ndarray],
) -> np.ndarray:
  """A released tensor, from the places of its pieces."""
  tensor = np.empty(plan.shape, plan.dtype)
  for piece in pieces:
    whole = tuple(slice(0, span.stop - span.start) for span in piece.box)
    place = arranged(tensor.__getitem__, piece, whole)
    source = block(piece.path, piece.lead)[piece.box]
    transpose.copy(place, source.astype(plan.dtype, copy=False))
  return tensor
