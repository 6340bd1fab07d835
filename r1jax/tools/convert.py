"""A model from one form to another: a run's checkpoint, or another dtype.

    r1jax convert --source=WORKDIR --target=DIRECTORY
    r1jax convert --source=DIRECTORY --target=OTHER \
      --dtype=bfloat16

A source is the workdir of a run, whose newest checkpoint is taken, or a
directory in Hugging Face layout, float8 too. What is written is in that layout,
with the source's tokenizer, and loads in r1jax, transformers and servers. Of a
directory only one file's tensors are in memory at a time; of a run all
parameters are.
"""

import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from absl import flags

from r1jax import hf
from r1jax.hf import config as configs
from r1jax.hf import tokenizer_files
from r1jax.models.config import ModelConfig, replace
from r1jax.models.presets import preset
from r1jax.models.weights import sizes
from r1jax.runtime import checkpoint
from r1jax.runtime.console import Console
from r1jax.types import Params

# Where the checkpoint of a loop holds the parameters.
PARAMS = {"grpo": "train.params", "sft": "params"}


class Source(NamedTuple):
  """A model that was found."""

  config: ModelConfig
  params: Params  # Or what reads them.
  tokenizer: pathlib.Path | None  # Its directory.
  provenance: Mapping[str, Any] | None


def find(path: pathlib.Path, *, dtype: str | None, mtp: bool) -> Source:
  """The model in a run's workdir, or in a directory of Hugging Face layout.

  Raises ValueError if `path` is neither.
  """
  settings = configs.read_json(hf.directory(path) / "config.json")
  if "architectures" in settings:
    return in_directory(path, settings, dtype=dtype, mtp=mtp)
  if "loop" in settings and checkpoint.latest_step(path) is not None:
    return in_workdir(path, settings, mtp=mtp)
  raise ValueError(
    f"{path} is neither the workdir of a run that saved a checkpoint nor a "
    "model's directory: it has no config.json with a loop or architectures"
  )


def in_directory(
  path: pathlib.Path,
  settings: Mapping[str, Any],
  *,
  dtype: str | None,
  mtp: bool,
) -> Source:
  """A model in Hugging Face layout; in the dtype it says it has."""
  said = settings.get("dtype") or settings.get("torch_dtype") or "float32"
  config, arrays = hf.open_model(path, dtype=dtype or said, mtp=mtp)
  provenance = configs.read_json(path / "provenance.json")
  digests = [key for key in provenance if key.endswith(" sha256")]
  for key in digests:
    del provenance[key]
  return Source(config, arrays, path, provenance or None)


def in_workdir(
  path: pathlib.Path, run: Mapping[str, Any], *, mtp: bool
) -> Source:
  """The newest checkpoint of a run."""
  if run["loop"] not in PARAMS:
    raise ValueError(
      f"{path} is a run of {run['loop']!r}; only {', '.join(PARAMS)} train a "
      "model of language"
    )
  step = checkpoint.latest_step(path)
  params = checkpoint.load_params(path, PARAMS[run["loop"]])
  config = architecture(run["model"])
  if not mtp:
    config = replace(config, mtp_depth=0)
    params.pop("mtp", None)
  own = path / "tokenizer"
  tokenizer = own if own.is_dir() else run.get("tokenizer", {}).get("path")
  return Source(
    config,
    params,
    pathlib.Path(tokenizer) if tokenizer else None,
    dict(config=run, step=step),
  )


def architecture(section: Mapping[str, Any]) -> ModelConfig:
  """What kind of model the section `model` of a run's config names."""
  if "path" in section:
    return hf.open_model(section["path"])[0]
  if "preset_name" in section:
    return preset(section["preset_name"], vocab_size=section["vocab_size"])
  return preset(**section)


def main() -> None:
  """Converts, and says what it did."""
  options = flags.FLAGS
  for name in ("source", "target"):
    if not options[name].value:
      raise ValueError(f"--{name} is not set; give a directory")
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
    "source", None, "A run's workdir, or a model's directory."
  )
  flags.DEFINE_string("target", None, "Directory to write to; is made.")
  flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16", "float16"],
    "Of the weights; by default that of the source, and bfloat16 of float8.",
  )
  flags.DEFINE_bool("mtp", True, "Keep the layers that predict further tokens.")
  flags.DEFINE_string(
    "tokenizer", None, "Directory of a tokenizer; by default the source's."
  )
  flags.DEFINE_float(
    "shard_gigabytes", 5.0, "The most that one file holds.", lower_bound=0.0
  )
