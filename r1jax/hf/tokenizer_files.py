"""The tokenizer and generation config that accompany the weights."""

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
  """Copies a tokenizer's files to `target`; returns the ids of BOS and EOS.

  `generation_config.json` is copied as well, or written with these ids if there
  is none. Raises ValueError if `source` holds no tokenizer.
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
  """Whether a directory holds a tokenizer."""
  names = (name for name in TOKENIZER if name.startswith("tokenizer."))
  return any((directory / name).is_file() for name in names)


def token_ids(source: pathlib.Path) -> dict[str, Any]:
  """`bos_token_id` and `eos_token_id` of a tokenizer; None if it has none.

  Each id comes from the first source that has it: config.json,
  generation_config.json, then the tokenizer itself.
  """
  sources = [read_json(source / name) for name in ("config.json", GENERATION)]
  sources.append(_tokenizer_ids(source))
  candidates = {key: [ids.get(key) for ids in sources] for key in TOKENS}
  return {
    key: next((value for value in values if value is not None), None)
    for key, values in candidates.items()
  }


def _tokenizer_ids(source: pathlib.Path) -> dict[str, int | None]:
  """The ids from tokenizer.json and its config, or from a SentencePiece model.

  The latter is used only if there is no tokenizer.json.
  """
  model = source / "tokenizer.model"
  if not (source / "tokenizer.json").is_file() and model.is_file():
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ids = zip(TOKENS, (processor.bos_id(), processor.eos_id()), strict=True)
    return {key: number if number >= 0 else None for key, number in ids}
  settings = read_json(source / "tokenizer_config.json")
  added = read_json(source / "tokenizer.json").get("added_tokens", [])
  table = {token["content"]: token["id"] for token in added}
  ids = {}
  for key in TOKENS:
    token = settings.get(key.removesuffix("_id"))
    token = token.get("content") if isinstance(token, dict) else token
    ids[key] = table.get(token)
  return ids
