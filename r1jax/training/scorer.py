"""Reward models: a transformer with a scalar head, in files and in use.

DIRECTORY/...                  the transformer, in Hugging Face layout
DIRECTORY/score.safetensors    the head, "score.weight" [1, D]
DIRECTORY/reward_model.json    what it reads, and in which template
"""

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from r1jax import hf
from r1jax.data import templates
from r1jax.data import tokenizer as tokenizers
from r1jax.data.demonstrations import Text
from r1jax.models import transformer
from r1jax.models.config import ModelConfig
from r1jax.parallel import sharding
from r1jax.parallel.mesh import row_shards
from r1jax.rewards.judges import learned
from r1jax.runtime import distributed
from r1jax.training import models, reward_batch, sft_batch
from r1jax.training.models import Initial
from r1jax.training.state import make_params
from r1jax.types import Packed, Params

HEAD, SETTINGS = "score.safetensors", "reward_model.json"
SHARD_ROWS = 16  # Responses that each part of the mesh scores at once.
LEAST_WIDTH = 64  # Slots of the shortest rows; longer ones are powers of two.


def with_head(initial: Initial) -> Initial:
  """The model with a head of zeros, the parameter "score" [D]."""
  width = initial.config.width

  def make(shardings):
    if shardings is None:
      return initial.make(None) | {"score": np.zeros(width, np.float32)}
    params = initial.make({k: v for k, v in shardings.items() if k != "score"})
    zeros = functools.partial(jnp.zeros, width, jnp.float32)
    return params | {
      "score": jax.jit(zeros, out_shardings=shardings["score"])()
    }

  head = jax.ShapeDtypeStruct((width,), jnp.float32)
  return initial._replace(
    shapes=initial.shapes | {"score": head},
    make=make,
    axes=initial.axes | {"score": (None,)},
  )


def scores_of(
  model: transformer.Transformer,
  params: Params,
  packed: Packed,
  last: Int[Array, "B"],
) -> Float[Array, "B"]:
  """The score of the text in each row, read at the slot of its last token."""
  hidden = transformer.forward(model, without_head(params), packed).hidden
  ends = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
  return ends.astype(jnp.float32) @ params["score"]


def without_head(params: Params) -> Params:
  """The parameters of the transformer."""
  return {name: value for name, value in params.items() if name != "score"}


def save(
  folder: pathlib.Path,
  config: ModelConfig,
  params: Params,
  *,
  tokenizer: str,
  template: str,
  whole: bool,
  provenance: Mapping[str, Any],
) -> None:
  """Writes a reward model. All processes of a job must call it.

  Args:
    folder: replaces a model that is there.
    config: of the transformer.
    params: with the head.
    tokenizer: the directory whose tokenizer is copied.
    template: name of the template around a response.
    whole: whether it reads a whole response, and not the summary alone.
    provenance: see `hf.save`.
  """
  head = sharding.to_host(params["score"])
  hf.save(
    folder,
    config,
    without_head(params),
    tokenizer=tokenizer,
    provenance=provenance,
  )
  if distributed.is_first():
    save_file({"score.weight": head[None]}, folder / HEAD)
    settings = {"template": template, "whole": whole}
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def load(path: str, mesh: Mesh, *, whole: bool, dtype: Any) -> "Scorer":
  """A reward model from its directory, on the devices of a mesh.

  Args:
    path: of the directory.
    mesh: over which the parameters are split.
    whole: whether it shall read whole responses.
    dtype: of its parameters and activations.

  Raises ValueError for a directory that holds no reward model, or one that
  reads something else.
  """
  settings, head = read_head(path)
  if settings["whole"] != whole:
    reads = {True: "whole responses (safety)", False: "summaries (helpfulness)"}
    raise ValueError(
      f"the reward model in {path} reads {reads[settings['whole']]}, and is "
      f"used for {reads[whole]}"
    )
  initial = models.pretrained(
    False, path=path, dtype=dtype, compute_dtype=dtype
  )
  params = make_params(mesh, initial) | {
    "score": sharding.to_device(head, sharding.replicated(mesh))
  }
  return Scorer(
    transformer.Transformer(initial.config),
    params,
    mesh,
    tokenizers.load(path),
    settings["template"],
  )


def read_head(path: str) -> tuple[dict[str, Any], np.ndarray]:
  """The settings and the head [D] of a reward model; see `load`."""
  folder = pathlib.Path(path)
  if not path:
    raise ValueError("the path of a reward model is not set in 'rewards'")
  if not (folder / SETTINGS).exists():
    raise ValueError(
      f"{path} holds no reward model, for it has no {SETTINGS}; train one with "
      "the loop 'reward_model'"
    )
  try:
    settings = json.loads((folder / SETTINGS).read_bytes())
    head = load_file(folder / HEAD)["score.weight"][0]
    return {key: settings[key] for key in ("template", "whole")}, head
  except (OSError, ValueError, KeyError, SafetensorError) as error:
    raise ValueError(
      f"the reward model in {path} is damaged ({error}); train it again"
    ) from None


class Scorer:
  """A reward model that is called with (prompt, text) for scores."""

  def __init__(
    self,
    model: transformer.Transformer,
    params: Params,
    mesh: Mesh,
    tokenizer: tokenizers.Tokenizer,
    template: str,
  ):
    self._params, self._mesh, self._tokenizer = params, mesh, tokenizer
    self._limit = model.config.max_length
    self._template = templates.find(template, tokenizer)
    self._score = jax.jit(functools.partial(scores_of, model))

  def __call__(self, texts: Sequence[tuple[str, str]]) -> list[float]:
    """The score of each response to a prompt; NaN for one that is too long.

    All hosts must call it, each with its own texts, and all score all of them.
    """
    own = [
      reward_batch.ids_of(
        templates.user_turn(prompt), text, self._template, self._tokenizer
      )
      for prompt, text in texts
    ]
    first = int(
      distributed.all_gather(np.array(len(own)))[: jax.process_index()].sum()
    )
    everyone = sft_batch.gather(
      [Text(np.array(ids, np.int32), np.zeros(len(ids))) for ids in own]
    )
    scores = self._of([text.tokens for text in everyone])
    return scores[first : first + len(own)].tolist()

  def _of(self, texts: Sequence[np.ndarray]) -> np.ndarray:
    """The scores of token ids, of which a few lengths are compiled."""
    scores = np.full(len(texts), np.nan)
    rows = row_shards(self._mesh) * SHARD_ROWS
    by_width: dict[int, list[int]] = {}
    for i, ids in enumerate(texts):
      width = max(LEAST_WIDTH, 2 ** (len(ids) - 1).bit_length())
      if len(ids) <= self._limit:
        by_width.setdefault(width, []).append(i)
    for width, members in sorted(by_width.items()):
      for start in range(0, len(members), rows):
        part = members[start : start + rows]
        tokens, last = np.zeros((rows, width), np.int32), np.zeros(rows, int)
        for row, i in enumerate(part):
          tokens[row, : len(texts[i])] = texts[i]
          last[row] = len(texts[i]) - 1
        placed = sharding.rows_to_device(
          self._mesh, (transformer.pack_rows(tokens), last.astype(np.int32))
        )
        with jax.set_mesh(self._mesh):
          found = sharding.to_host(self._score(self._params, *placed))
        scores[part] = found[: len(part)]
    return scores


def with_models(spec: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
  """The rewards of a config, with reward models in place of their paths."""
  made = {}
  for name, entry in spec.items():
    if isinstance(entry, Mapping):
      if name in learned.NAMES and "path" in entry:
        entry = {**entry}
        entry["model"] = load(
          entry.pop("path"),
          mesh,
          whole=name == "safety",
          dtype=entry.pop("dtype", "bfloat16"),
        )
      else:
        entry = with_models(entry, mesh)
    made[name] = entry
  return made
