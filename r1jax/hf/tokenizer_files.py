"""What lies beside the weights of a released model: its tokenizer's files."""

import pathlib
import shutil
from typing import Any

from r1jax.hf.config import read_json, write_json

TOKENIZER = (
  "tokenizer.json",
  "tokenizer.json.gz",
  "tokenizer.model",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "chat_template.jinja",
)
GENERATION = "generation_config.json"
TOKENS = ("bos_token_id", "eos_token_id")


def copy(source: pathlib.Path, target: pathlib.Path) -> dict[str, Any]:
  """The ids that begin and end a text; copies the tokenizer's files.

  Also `generation_config.json`, which is made up where there is none.
  Raises ValueError if `source` holds no tokenizer.
  """
  if not holds_tokenizer(source):
    raise ValueError(
      f"{source} holds no tokenizer.json and no tokenizer.model; give the "
      "directory of a tokenizer"
    )
  for name in TOKENIZER:
    if (source / name).is_file():
      shutil.copy(source / name, target / name)
  ids = token_ids(source)
  if (source / GENERATION).is_file():
    shutil.copy(source / GENERATION, target / GENERATION)
  else:
    write_json(target / GENERATION, {"_from_model_config": True} | ids)
  return ids


def holds_tokenizer(directory: pathlib.Path) -> bool:
  """Whether there is a tokenizer in `directory`."""
  names = (name for name in TOKENIZER if name.startswith("tokenizer."))
  return any((directory / name).is_file() for name in names)


def token_ids(source: pathlib.Path) -> dict[str, Any]:
  """`bos_token_id` and `eos_token_id` of a tokenizer, None if it has none.

  As config.json beside it says; else generation_config.json; else what
  tokenizer_config.json names; else SentencePiece's own.
  """
  said = [read_json(source / name) for name in ("config.json", GENERATION)]
  said.append(_named(source))
  found = {key: [ids.get(key) for ids in said] for key in TOKENS}
  return {
    key: next((value for value in values if value is not None), None)
    for key, values in found.items()
  }


def _named(source: pathlib.Path) -> dict[str, int | None]:
  model = source / "tokenizer.model"
  if not (source / "tokenizer.json").is_file() and model.is_file():
    import sentencepiece

    words = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ids = zip(TOKENS, (words.bos_id(), words.eos_id()), strict=True)
    return {key: number if number >= 0 else None for key, number in ids}
  settings = read_json(source / "tokenizer_config.json")
  words = read_json(source / "tokenizer.json")
  table = {
    word["content"]: word["id"] for word in words.get("added_tokens", [])
  }
  ids = {}
  for key in TOKENS:
    token = settings.get(key.removesuffix("_id"))
    token = token.get("content") if isinstance(token, dict) else token
    ids[key] = table.get(token)
  return ids
