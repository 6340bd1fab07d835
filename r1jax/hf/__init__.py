"""Released checkpoints in Hugging Face layout: reading and writing.

  load         directory -> config, parameters
  open_model   directory -> config, parameters that are read when sliced
  read         those parameters, into NumPy or the shards of the devices
  save         config, parameters -> directory

config, architectures   config.json
layout                  which released tensor is which part of our arrays
tensors                 safetensors files
arrays                  slices of our arrays, read from released tensors
transpose               fast copies between memory orders
tokenizer_files         tokenizer and generation config
"""

from r1jax.hf.config import directory
from r1jax.hf.loading import load, open_model, read
from r1jax.hf.saving import save

__all__ = ["directory", "load", "open_model", "read", "save"]
