"""Released checkpoints: read into our parameters, and written from them.

    load, open_model    a directory in Hugging Face layout -> config, parameters
    save                and back

From the question to the file: `config` and `architectures` for config.json,
`layout` for the names of weights, `tensors` for the files that hold them,
`arrays` for reading any slice of a parameter, `tokenizer_files` for what lies
beside them.
"""

from r1jax.hf.config import directory
from r1jax.hf.loading import load, open_model
from r1jax.hf.saving import save

__all__ = ["directory", "load", "open_model", "save"]
