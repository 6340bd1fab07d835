"""A checksum of the files in a directory of Hugging Face layout."""

import hashlib
import pathlib

from r1jax.hf.config import directory
from r1jax.hf.gguf_files import is_gguf
from r1jax.hf.tokenizer_files import GENERATION, TOKENIZER

PROBES, PROBE = 64, 1 << 14  # Blocks that are read of a file, and their bytes.


def content_hash(path: str | pathlib.Path) -> str:
  """A checksum of the config, the tokenizer and the weights in a directory.

  Or of a GGUF file, which holds all of them.

  Files of up to a megabyte are read whole. Of larger ones, it covers the size
  and blocks at even distances, the first of which holds names and shapes: a
  terabyte of weights takes seconds. A change between these blocks is missed.
  """
  digest = hashlib.sha256()
  for file in _files(pathlib.Path(path)):
    size = file.stat().st_size
    digest.update(f"{file.name} {size}\n".encode())
    with open(file, "rb") as stream:
      for start in range(0, size, max(PROBE, size // PROBES)):
        stream.seek(start)
        digest.update(stream.read(PROBE))
  return digest.hexdigest()


def _files(path: pathlib.Path) -> list[pathlib.Path]:
  if is_gguf(path) and path.is_file():
    return [path]
  folder = directory(path)
  names = ("config.json", GENERATION, *TOKENIZER)
  files = [folder / name for name in names if (folder / name).is_file()]
  return sorted([*files, *folder.glob("*.safetensors")])
