"""Export the model of a run, or convert a model to another dtype.

    r1jax convert --source=WORKDIR --target=DIRECTORY
    r1jax convert --source=DIRECTORY --target=OTHER --dtype=bfloat16
    r1jax convert --source=FILE.gguf --target=DIRECTORY

The source is the workdir of a run, of which the newest checkpoint is read, a
directory in Hugging Face layout, including float8, or a GGUF file. The target
gets Hugging Face layout and the tokenizer of the source; r1jax, transformers
and inference servers can load it. When the source is a run, all parameters are
in memory; otherwise only one tensor is at a time.
"""

import functools
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from absl import flags

from r1jax import hf
from r1jax.hf import config as configs
from r1jax.hf import gguf_files, tokenizer_files
from r1jax.models.config import ModelConfig
from r1jax.models.weights import sizes
from r1jax.runtime import checkpoint
from r1jax.runtime.console import Console
from r1jax.training import models
from r1jax.types import Params

# The dotted name of the parameters in the checkpoints of each loop.
PARAMS = {"grpo": "train.params", "sft": "params"}


class Source(NamedTuple):
  """A model to convert."""

  config: ModelConfig
  params: Params  # Arrays, or lazy arrays that are read on use.
  tokenizer: pathlib.Path | None  # The directory of the tokenizer.
  provenance: Mapping[str, Any] | None


def find(path: pathlib.Path, *, dtype: str | None, mtp: bool) -> Source:
  """The model of a run, a directory in Hugging Face layout, or a GGUF file.

  Raises ValueError if `path` is none of these.
  """
  if gguf_files.is_gguf(path):
    return in_file(path, dtype=dtype)
  settings = configs.read_json(hf.directory(path) / "config.json")
  if "architectures" in settings:
    return in_directory(path, settings, dtype=dtype, mtp=mtp)
  if "loop" in settings and checkpoint.latest_step(path) is not None:
    return in_workdir(path, settings, mtp=mtp)
  raise ValueError(
    f"{path} is neither the workdir of a run with a checkpoint nor the "
    "directory of a model: it has no config.json with 'loop' or 'architectures'"
  )


def in_directory(
  path: pathlib.Path,
  settings: Mapping[str, Any],
  *,
  dtype: str | None,
  mtp: bool,
) -> Source:
  """The model in a directory of Hugging Face layout."""
  dtype_in_config = (
    settings.get("dtype") or settings.get("torch_dtype") or "float32"
  )
  config, arrays = hf.open_model(path, dtype=dtype or dtype_in_config, mtp=mtp)
  provenance = configs.read_json(path / "provenance.json")
  digests = [key for key in provenance if key.endswith(" sha256")]
  for key in digests:
    del provenance[key]
  return Source(config, arrays, path, provenance or None)


def in_file(path: pathlib.Path, *, dtype: str | None) -> Source:
  """The model in a GGUF file."""
  config, arrays = hf.open_model(path, dtype=dtype or "float32")
  return Source(config, arrays, pathlib.Path(unpacked(path).name), None)


@functools.cache
def unpacked(path: pathlib.Path) -> tempfile.TemporaryDirectory:
  """A folder with the tokenizer of a GGUF file, until this process ends."""
  folder = tempfile.TemporaryDirectory(prefix="r1jax_tokenizer_")
  gguf_files.write_tokenizer(path, pathlib.Path(folder.name))
  return folder


def in_workdir(
  path: pathlib.Path, run: Mapping[str, Any], *, mtp: bool
) -> Source:
  """The model in the newest checkpoint of a run."""
  if run["loop"] not in PARAMS:
    raise ValueError(
      f"{path} is a run of {run['loop']!r}; only runs of {', '.join(PARAMS)} "
      "can be converted"
    )
  step = checkpoint.latest_step(path)
  params = checkpoint.load_params(path, PARAMS[run["loop"]])
  mtp = mtp and run.get("mtp") != "drop"
  config = models.initial(**run["model"], mtp=mtp).config
  if not mtp:
    params.pop("mtp", None)
  tokenizer = run.get("tokenizer", {}).get("path")
  if (path / "tokenizer").is_dir():
    tokenizer = path / "tokenizer"
  return Source(
    config,
    params,
    pathlib.Path(tokenizer) if tokenizer else None,
    dict(config=run, step=step),
  )


def main() -> None:
  """Converts the model, and prints what was read and written."""
  options = flags.FLAGS
  for name in ("source", "target"):
    if not options[name].value:
      raise ValueError(f"--{name} is not set; set it to a directory")
  began, target = time.monotonic(), pathlib.Path(options.target)
  path = pathlib.Path(options.source)
  source = find(path, dtype=options.dtype, mtp=options.mtp)
  named = pathlib.Path(options.tokenizer) if options.tokenizer else None
  tokenizer = named or source.tokenizer
  holds = tokenizer_files.holds_tokenizer
  if named is None and tokenizer and not holds(tokenizer):
    tokenizer = None
  name = configs.architecture(source.config)
  counts = sizes(source.config)
  print(
    f"{path}: {name}, {counts['total']:,} parameters"
    + (f" and {counts['mtp']:,} of MTP" if "mtp" in counts else ""),
    flush=True,
  )
  console = Console()
  try:
    hf.save(
      target,
      source.config,
      source.params,
      tokenizer=tokenizer,
      provenance=source.provenance,
      dtype=options.dtype,
      file_bytes=options.shard_gigabytes * 1e9,
      progress=console.megabytes,
    )
  finally:
    console.close()
  size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
  kind = configs.read_json(target / "config.json")["torch_dtype"]
  print(
    f"{target}: {size:,} bytes of {kind}, "
    f"{'with' if tokenizer else 'WITHOUT'} a tokenizer, in "
    f"{time.monotonic() - began:.1f} s",
    flush=True,
  )


def define_flags() -> None:
  """Defines the flags that `main` reads."""
  flags.DEFINE_string(
    "source", None, "The workdir of a run, or the directory of a model."
  )
  flags.DEFINE_string("target", None, "The directory to create and write to.")
  flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16", "float16"],
    "Dtype of the weights; by default that of the source, or bfloat16 if that "
    "is float8.",
  )
  flags.DEFINE_bool("mtp", True, "Whether to keep the MTP blocks.")
  flags.DEFINE_string(
    "tokenizer", None, "Directory of a tokenizer; by default the source's."
  )
  flags.DEFINE_float(
    "shard_gigabytes", 5.0, "The maximum size of a file.", lower_bound=0.0
  )
