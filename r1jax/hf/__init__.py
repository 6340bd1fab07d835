"""Released checkpoints in Hugging Face layout: reading and writing.

  load         directory -> config, parameters
  open_model   directory -> config, parameters that are read when sliced
  read         those parameters, into NumPy or the shards of the devices
  save         config, parameters -> directory
  content_hash directory -> a checksum, without reading all of it

config, architectures   config.json
layout                  which released tensor is which part of our arrays
tensors                 safetensors files
arrays                  slices of our arrays, read from released tensors
transpose               fast copies between memory orders
tokenizer_files         tokenizer and generation config
"""

from r1jax.hf.config import directory
from r1jax.hf.contents import content_hash
from r1jax.hf.loading import load, open_model, read
from r1jax.hf.saving import save

__all__ = [
  "content_hash",
  "directory",
  "load",
  "open_model",
  "read",
  "save",
]
