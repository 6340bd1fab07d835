"""Tokenizers: text to token ids and back.

`load` opens a directory in Hugging Face layout, with `tokenizer.json` (plain or
gzipped) or `tokenizer.model` (SentencePiece). Both kinds implement
`r1jax.types.Tokenizer`, and `r1jax.data.chat.ChatTokenizer` for conversations.
There is no pad token: padding is known from lengths, so that a tokenizer whose
pad token is also an EOS causes no errors.
"""

import collections
import functools
import gzip
import io
import itertools
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from r1jax.types import Tokenizer

SPECIAL_NAMES = {
  f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
}
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def load(path: str, *, bos: bool | None = None):
  """Returns the tokenizer in a directory; see `r1jax.types.Tokenizer`.

  If the directory has both kinds, `tokenizer.json` is used, because only that
  has the tokens that were added for conversations.

  Args:
    path: the directory.
    bos: whether each text begins with BOS. None follows the tokenizer: its
      `add_bos_token`, or else the post-processor of tokenizer.json. Chat
      templates write their own BOS in any case.

  Raises ValueError if the directory has no tokenizer, or an invalid one.
  """
  if not path:
    raise ValueError(
      "tokenizer.path is not set; give the directory of a Hugging Face "
      "tokenizer, --config.tokenizer.path=DIRECTORY"
    )
  directory = pathlib.Path(path)
  for name in ("tokenizer.json", "tokenizer.json.gz"):
    if (directory / name).exists():
      return HuggingFace(directory / name, bos)
  if (directory / "tokenizer.model").exists():
    return SentencePiece(directory / "tokenizer.model", bos)
  raise ValueError(
    f"{directory} holds no tokenizer.model, tokenizer.json or "
    "tokenizer.json.gz; give the directory of a Hugging Face tokenizer"
  )


class SentencePiece:
  """A SentencePiece model; its `</s>` ends a completion."""

  special_tokens: tuple[str, ...] = ()  # No text encodes to control tokens.

  def __init__(self, path: pathlib.Path, bos: bool | None = None):
    import sentencepiece

    try:
      model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
      raise ValueError(
        f"{path} is not a SentencePiece model: {error}"
      ) from error
    self._model = model
    self.vocab_size = model.vocab_size()
    known = lambda number: 0 <= number < self.vocab_size
    ends = [model.eos_id()] if known(model.eos_id()) else []
    self.eos_ids = _eos_ids(path, ends, known)
    self.bos_id = model.bos_id() if known(model.bos_id()) else None
    self.prefix_ids = _prefix_ids(path, bos, self.bos_id)
    self.special_tokens_map = _special_tokens_map(self, path)
    self.chat_template = _chat_template(path.parent)

  def encode(self, text: str) -> list[int]:
    """Returns the token ids of `text`, without BOS and EOS."""
    return self._model.encode(text)

  def encode_ordinary(self, text: str) -> list[int]:
    """Returns the ids of `encode`: user-defined symbols are ordinary text."""
    return self.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of `ids`, without EOS."""
    return self._model.decode([int(i) for i in ids if i not in self.eos_ids])

  def id_to_token(self, token: int) -> str:
    """Returns the token's string in the vocabulary."""
    return self._model.id_to_piece(token)


class HuggingFace:
  """A `tokenizer.json`, with the BOS and EOS of the files beside it.

  Several tokens may end a completion: the `eos_token` of tokenizer_config.json,
  and the `eos_token_id` of generation_config.json and config.json.
  """

  def __init__(self, path: pathlib.Path, bos: bool | None = None):
    import tokenizers

    try:
      data = path.read_bytes()
      if path.suffix == ".gz":
        data = gzip.decompress(data)
      self._model = tokenizers.Tokenizer.from_str(data.decode())
    except Exception as error:  # The library raises plain Exceptions.
      raise ValueError(f"{path} is not a tokenizer: {error}") from error
    self._model.no_truncation()  # Both may be enabled in the file.
    self._model.no_padding()
    self.vocab_size = self._model.get_vocab_size()
    config = path.parent / "tokenizer_config.json"
    ends = self._named(config, "eos_token")
    self.eos_ids = _eos_ids(path, ends, self._known)
    begins = self._named(config, "bos_token")
    self.bos_id: int | None = begins[0] if begins else None
    self.prefix_ids = _prefix_ids(
      path, bos, self.bos_id, self._default_prefix()
    )
    self.special_tokens_map = _special_tokens_map(self, path)
    self.chat_template = _chat_template(path.parent)
    added = self._model.get_added_tokens_decoder()
    self._added = {n: t.content for n, t in added.items() if t.content.strip()}
    self.special_tokens = tuple(self._added.values())

  def _known(self, number: int) -> bool:
    return number >= 0 and self._model.id_to_token(number) is not None

  def _named(self, config: pathlib.Path, key: str) -> list[int]:
    """Returns the id of the token under `key` of `config`, in a list.

    The list is empty if `config` has no such key. Raises ValueError if the
    token is not in the vocabulary.
    """
    token = _read(config).get(key)
    token = token.get("content") if isinstance(token, dict) else token
    if token is None:
      return []
    number = self._model.token_to_id(token) if isinstance(token, str) else None
    if number is None:
      raise ValueError(f"{config}: {key} {token!r} is not in the vocabulary")
    return [number]

  def _default_prefix(self) -> tuple[int, ...]:
    """Returns the ids that the post-processor puts before a text."""
    text = self._model.encode("a", add_special_tokens=False).ids
    whole = self._model.encode("a").ids
    starts = range(len(whole) - len(text) + 1)
    start = next((i for i in starts if whole[i : i + len(text)] == text), 0)
    return tuple(whole[:start])

  def encode(self, text: str) -> list[int]:
    """Returns the token ids of `text`, without BOS and EOS.

    The name of a special token in `text` becomes that token.
    """
    return self._model.encode(text, add_special_tokens=False).ids

  def encode_ordinary(self, text: str) -> list[int]:
    """Returns the token ids of `text` without any special tokens.

    The name of a special token becomes ordinary tokens. Raises ValueError if
    the vocabulary cannot encode it so.
    """
    ids = self._plain.encode(text, add_special_tokens=False).ids
    if special := {*ids} & self._added.keys():
      names = [self._added[number] for number in sorted(special)]
      raise ValueError(
        f"this tokenizer cannot encode {names} without special tokens"
      )
    return ids

  @functools.cached_property
  def _plain(self):
    """The same tokenizer without its special tokens."""
    import tokenizers

    data = json.loads(self._model.to_str())
    data["added_tokens"] = [
      token for token in data["added_tokens"] if token["id"] not in self._added
    ]
    data["post_processor"] = None  # It may refer to special tokens.
    return tokenizers.Tokenizer.from_str(json.dumps(data))

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of `ids`, without EOS, with other special tokens."""
    ids = [int(i) for i in ids if i not in self.eos_ids]
    return self._model.decode(ids, skip_special_tokens=False)

  def decode_batch(self, sequences: Sequence[np.ndarray]) -> list[str]:
    """Returns the text of each sequence; see `decode`. It uses all cores."""
    return self._model.decode_batch(
      [ids[~np.isin(ids, self.eos_ids)].tolist() for ids in sequences],
      skip_special_tokens=False,
    )

  def id_to_token(self, token: int) -> str:
    """Returns the token's string in the vocabulary."""
    return self._model.id_to_token(token)


class TextStream:
  """Decodes token ids incrementally, for streaming.

  A character may consist of several tokens. Its text is returned when the last
  of them has arrived, so that returned text never changes.
  """

  def __init__(self, tokenizer: Tokenizer):
    self._decode = tokenizer.decode
    self._ids: list[int] = []
    # Text is decoded from `_start`, because a token's text may depend on the
    # token before it. The text up to `_read` has been returned.
    self._start = self._read = 0

  def push(self, ids: Sequence[int]) -> str:
    """Adds ids, and returns the new text that is final; it may be empty."""
    self._ids += ids
    text = self._pending()
    return "" if text.endswith("\ufffd") else self._emit(text)

  def flush(self) -> str:
    """Returns the remaining text; an incomplete character is U+FFFD."""
    return self._emit(self._pending())

  def _pending(self) -> str:
    emitted = self._decode(self._ids[self._start : self._read])
    return self._decode(self._ids[self._start :])[len(emitted) :]

  def _emit(self, text: str) -> str:
    if text:
      self._start, self._read = self._read, len(self._ids)
    return text


def _read(path: pathlib.Path) -> dict[str, Any]:
  """Returns the object in a JSON file, or {} if the file does not exist."""
  if not path.exists():
    return {}
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path} is not JSON: {error}") from error
  if not isinstance(content, dict):
    raise ValueError(
      f"{path} must hold a JSON object, got {type(content).__name__}"
    )
  return content


def _prefix_ids(
  path: pathlib.Path,
  bos: bool | None,
  bos_id: int | None,
  default: tuple[int, ...] = (),
) -> tuple[int, ...]:
  """Returns the ids with which texts begin, from `bos` or the files."""
  config = path.parent / "tokenizer_config.json"
  add_bos = _read(config).get("add_bos_token") if bos is None else bos
  if add_bos is None:
    return default
  if bos and bos_id is None:
    raise ValueError(
      f"tokenizer.bos is True, but {config} names no bos_token; set it to None"
    )
  return (bos_id,) if add_bos and bos_id is not None else ()


def _special_tokens_map(
  tokenizer: "SentencePiece | HuggingFace", path: pathlib.Path
) -> dict[str, str]:
  """Returns special tokens by their keys in the files, such as "bos_token"."""
  named = {"eos_token": tokenizer.id_to_token(tokenizer.eos_ids[0])}
  if tokenizer.bos_id is not None:
    named["bos_token"] = tokenizer.id_to_token(tokenizer.bos_id)
  for name in ("special_tokens_map.json", "tokenizer_config.json"):
    declared = _read(path.parent / name)
    for key in SPECIAL_NAMES & declared.keys():
      token = declared[key]
      token = token.get("content") if isinstance(token, dict) else token
      if isinstance(token, str):
        named[key] = token
  return named


def _eos_ids(
  path: pathlib.Path, named: Sequence[int], known: Callable[[int], bool]
) -> tuple[int, ...]:
  """Returns the ids `named`, then those in the files beside the tokenizer."""
  ids = list(named)
  for name in ("generation_config.json", "config.json"):
    file = path.parent / name
    listed = _read(file).get("eos_token_id")
    listed = [] if listed is None else listed
    for number in listed if isinstance(listed, list) else [listed]:
      if type(number) is not int or not known(number):
        raise ValueError(
          f"{file}: eos_token_id {number!r} is not in the vocabulary"
        )
      ids.append(number)
  if not ids:
    config = path.parent / "tokenizer_config.json"
    state = "names no eos_token" if config.exists() else "is missing"
    raise ValueError(f"{config} {state}; name the EOS token there")
  return tuple(dict.fromkeys(ids))


def _chat_template(directory: pathlib.Path) -> str | None:
  """Returns the text of chat_template.jinja or of tokenizer_config.json."""
  file = directory / "chat_template.jinja"
  if file.exists():
    return file.read_text(encoding="utf-8")
  config = directory / "tokenizer_config.json"
  template = _read(config).get("chat_template")
  if isinstance(template, list):  # Several templates, by name.
    by_name = {entry["name"]: entry["template"] for entry in template}
    template = by_name.get("default")
  if template is not None and not isinstance(template, str):
    raise ValueError(f"{config}: chat_template must be text, got {template!r}")
  return template


def fit(texts: Iterable[str], path: pathlib.Path, *, word_share: float) -> None:
  """Trains a SentencePiece model on `texts` and writes it to `path`.

  The tokens are single characters, the template's tags, and words that occur in
  at least a share `word_share` of the texts, with the space before them. Rarer
  words are spelled in characters, which a model needs for spelling tasks. Id 0
  is unknown, 1 is BOS (unused) and 2 is EOS.
  """
  import sentencepiece

  texts = list(texts)
  counts = collections.Counter()
  for text in texts:
    counts.update(set(re.findall(r" [A-Za-z]{2,}", text)))
  words = sorted(
    word.replace(" ", "\u2581")
    for word, count in counts.items()
    if count >= word_share * len(texts)
  )
  bare = re.sub("|".join(TAGS), "", "".join(texts))
  characters = {c for c in set(bare) if not c.isspace()}
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts),
    model_writer=model,
    model_type="char",
    vocab_size=6 + len(TAGS) + len(words) + len(characters),
    hard_vocab_limit=False,
    character_coverage=1.0,
    # Includes characters that occur only in words that are tokens.
    required_chars="".join(sorted(characters)),
    user_defined_symbols=[*TAGS, "\n", *words],
    normalization_rule_name="identity",
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    max_sentence_length=100_000,
    num_threads=1,
    minloglevel=2,
  )
  path.parent.mkdir(parents=True, exist_ok=True)
  draft = path.with_suffix(".tmp")
  draft.write_bytes(model.getvalue())
  draft.replace(path)


def load_or_fit(
  texts: Iterable[str],
  directory: pathlib.Path,
  *,
  documents: int,
  word_share: float,
) -> SentencePiece:
  """Returns the tokenizer in a directory; trains it if it does not exist.

  Args:
    texts: the texts to train on.
    directory: the directory of the tokenizer.
    documents: the number of texts to read.
    word_share: see `fit`.
  """
  path = directory / "tokenizer.model"
  if not path.exists():
    fit(itertools.islice(texts, documents), path, word_share=word_share)
  return SentencePiece(path)
