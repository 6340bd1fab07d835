"""Models of the transformers library, to compare with."""

import dataclasses
import importlib.metadata
import pathlib
import tempfile
from collections.abc import Callable

import numpy as np

from r1jax import hf
from r1jax.models.config import ModelConfig
from r1jax.types import Params


@dataclasses.dataclass(frozen=True)
class Peer:
  """Functions that do the same work as ours, with the same weights."""

  decode: Callable  # (rows, prompt_tokens, tokens) -> tokens [B, T]
  train: Callable  # (rows, tokens) -> loss, after computing its gradient.


def versions() -> dict[str, str]:
  """The versions of the peer's packages."""
  return {
    name: importlib.metadata.version(name) for name in ("torch", "transformers")
  }


def build(config: ModelConfig, params: Params) -> Peer:
  """The model of transformers with our weights, in float32."""
  import torch
  import transformers

  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  with tempfile.TemporaryDirectory() as folder:
    hf.save(pathlib.Path(folder) / "model", config, params)
    network = transformers.AutoModelForCausalLM.from_pretrained(
      pathlib.Path(folder) / "model", dtype=torch.float32
    )

  def draw(rows, tokens):
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, config.vocab_size, (rows, tokens), np.int32)
    return torch.from_numpy(drawn.astype(np.int64))

  def decode(rows, prompt_tokens, tokens):
    with torch.inference_mode():
      token, cache = draw(rows, prompt_tokens), transformers.DynamicCache()
      sampled = []
      for _ in range(tokens):
        out = network(token, past_key_values=cache, use_cache=True)
        token = out.logits[:, -1:].argmax(-1)
        sampled.append(token)
      return torch.cat(sampled, dim=1).numpy()

  def train(rows, tokens):
    batch = draw(rows, tokens)
    network.zero_grad()
    loss = network(batch, labels=batch, use_cache=False).loss
    loss.backward()
    return float(loss.detach())

  return Peer(decode=decode, train=train)
