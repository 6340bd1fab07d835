"""Text to token ids and back, behind one small interface.

`load` opens a directory in Hugging Face layout: `tokenizer.json` (plain or
gzipped) or `tokenizer.model` (SentencePiece). Beside the interface of
`r1jax.types.Tokenizer` both kinds offer what conversations need; see
`r1jax.data.chat.ChatTokenizer`. Padding has no place here: what is padding is
known from lengths, so a pad token that is also an EOS is of no consequence.
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

from r1jax.types import Tokenizer

SPECIAL_NAMES = {
  f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
}
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def load(path: str, *, bos: bool | None = None):
  """The tokenizer in the directory `path`; see `r1jax.types.Tokenizer`.

  Of both kinds it takes `tokenizer.json`, which alone knows the tokens that
  were added for conversations.

  Args:
    path: of the directory.
    bos: whether every text begins with BOS. None asks the tokenizer: its
      `add_bos_token`, or else what the post-processor of tokenizer.json puts in
      front. Chat templates write their own beginning, whatever this is.
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

  specials: tuple[str, ...] = ()  # No text makes its control tokens.

  def __init__(self, path: pathlib.Path, bos: bool | None = None):
    import sentencepiece

    try:
      model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
      raise ValueError(f"{path} is no SentencePiece model: {error}") from error
    self._model = model
    self.vocab_size = model.vocab_size()
    known = lambda number: 0 <= number < self.vocab_size
    own = [number for number in [model.eos_id()] if known(number)]
    self.eos_ids = _eos_ids(path, own, known)
    self.bos_id = model.bos_id() if known(model.bos_id()) else None
    self.prefix_ids = _prefix_ids(path, bos, self.bos_id)
    self.named_specials = _named_specials(self, path)
    self.chat_template = _chat_template(path.parent)

  def encode(self, text: str) -> list[int]:
    """Token ids of `text`; no BOS, no EOS."""
    return self._model.encode(text)

  def spell(self, text: str) -> list[int]:
    """Token ids of `text`; user-defined symbols are a part of the language."""
    return self.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    """The text of `ids`, EOS dropped."""
    return self._model.decode([int(i) for i in ids if i not in self.eos_ids])

  def piece(self, token: int) -> str:
    """The token as the vocabulary spells it."""
    return self._model.id_to_piece(token)


class HuggingFace:
  """A `tokenizer.json`; the files beside it say which tokens begin and end.

  EOS is the `eos_token` of tokenizer_config.json, and what `eos_token_id` of
  generation_config.json and of config.json list: any of them ends a completion.
  """

  def __init__(self, path: pathlib.Path, bos: bool | None = None):
    import tokenizers

    try:
      data = path.read_bytes()
      if path.suffix == ".gz":
        data = gzip.decompress(data)
      self._model = tokenizers.Tokenizer.from_str(data.decode())
    except Exception as error:  # The library raises nothing narrower.
      raise ValueError(f"{path} is no tokenizer: {error}") from error
    self._model.no_truncation()  # Both may be saved with it.
    self._model.no_padding()
    self.vocab_size = self._model.get_vocab_size()
    config = path.parent / "tokenizer_config.json"
    ends = self._named(config, "eos_token")
    self.eos_ids = _eos_ids(path, ends, self._known)
    begins = self._named(config, "bos_token")
    self.bos_id: int | None = begins[0] if begins else None
    self.prefix_ids = _prefix_ids(path, bos, self.bos_id, self._put_in_front())
    self.named_specials = _named_specials(self, path)
    self.chat_template = _chat_template(path.parent)
    added = self._model.get_added_tokens_decoder()
    self._added = {n: t.content for n, t in added.items() if t.content.strip()}
    self.specials = tuple(self._added.values())

  def _known(self, number: int) -> bool:
    return number >= 0 and self._model.id_to_token(number) is not None

  def _named(self, config: pathlib.Path, key: str) -> list[int]:
    """The id of the token that `config` names under `key`; none if it does not.

    Raises ValueError if it names a token that the vocabulary does not have.
    """
    token = _read(config).get(key)
    token = token.get("content") if isinstance(token, dict) else token
    if token is None:
      return []
    number = self._model.token_to_id(token) if isinstance(token, str) else None
    if number is None:
      raise ValueError(f"{config}: {key} {token!r} is not in the vocabulary")
    return [number]

  def _put_in_front(self) -> tuple[int, ...]:
    """What the post-processor puts before a text."""
    text = self._model.encode("a", add_special_tokens=False).ids
    whole = self._model.encode("a").ids
    starts = range(len(whole) - len(text) + 1)
    start = next((i for i in starts if whole[i : i + len(text)] == text), 0)
    return tuple(whole[:start])

  def encode(self, text: str) -> list[int]:
    """Token ids of `text`; no BOS, no EOS.

    Where `text` holds the name of a special token, that token is meant.
    """
    return self._model.encode(text, add_special_tokens=False).ids

  def spell(self, text: str) -> list[int]:
    """Token ids of `text` as plain text: a special token's name is spelled out.

    Raises ValueError if the vocabulary has no other way to write it.
    """
    ids = self._plain.encode(text, add_special_tokens=False).ids
    if forged := {*ids} & self._added.keys():
      names = [self._added[number] for number in sorted(forged)]
      raise ValueError(f"this tokenizer cannot spell out {names}")
    return ids

  @functools.cached_property
  def _plain(self):
    """The same tokenizer without its special tokens; few ever need it."""
    import tokenizers

    data = json.loads(self._model.to_str())
    data["added_tokens"] = [
      token for token in data["added_tokens"] if token["id"] not in self._added
    ]
    data["post_processor"] = None  # It may name them.
    return tokenizers.Tokenizer.from_str(json.dumps(data))

  def decode(self, ids: Sequence[int]) -> str:
    """The text of `ids`, EOS dropped; other special tokens are shown."""
    ids = [int(i) for i in ids if i not in self.eos_ids]
    return self._model.decode(ids, skip_special_tokens=False)

  def piece(self, token: int) -> str:
    """The token as the vocabulary spells it."""
    return self._model.id_to_token(token)


class TextStream:
  """The text of ids that come one after another, as soon as it is certain.

  A character may take several tokens. Its text is held back until the last of
  them has come, so that what was given out is never taken back.
  """

  def __init__(self, tokenizer: Tokenizer):
    self._decode = tokenizer.decode
    self._ids: list[int] = []
    # Text is decoded from `_start`, since what a token reads as may depend on
    # the token before it; up to `_read` it was given out.
    self._start = self._read = 0

  def push(self, ids: Sequence[int]) -> str:
    """The text that is certain once `ids` have come; may be empty."""
    self._ids += ids
    text = self._pending()
    return "" if text.endswith("\ufffd") else self._give(text)

  def flush(self) -> str:
    """What was held back, at the end; broken characters are U+FFFD."""
    return self._give(self._pending())

  def _pending(self) -> str:
    given = self._decode(self._ids[self._start : self._read])
    return self._decode(self._ids[self._start :])[len(given) :]

  def _give(self, text: str) -> str:
    if text:
      self._start, self._read = self._read, len(self._ids)
    return text


def _read(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file; an empty one if there is no such file."""
  if not path.exists():
    return {}
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path} is no JSON: {error}") from error
  if not isinstance(content, dict):
    raise ValueError(f"{path} holds no object, but {type(content).__name__}")
  return content


def _prefix_ids(
  path: pathlib.Path,
  bos: bool | None,
  bos_id: int | None,
  put_in_front: tuple[int, ...] = (),
) -> tuple[int, ...]:
  """What texts begin with: as `bos` says, or else as the tokenizer does."""
  config = path.parent / "tokenizer_config.json"
  wanted = _read(config).get("add_bos_token") if bos is None else bos
  if wanted is None:
    return put_in_front
  if bos and bos_id is None:
    raise ValueError(
      f"tokenizer.bos is True, but {config} names no bos_token; set it to None"
    )
  return (bos_id,) if wanted and bos_id is not None else ()


def _named_specials(words, path: pathlib.Path) -> dict[str, str]:
  """The special tokens by the names that files give them, and BOS and EOS."""
  named = {"eos_token": words.piece(words.eos_ids[0])}
  if words.bos_id is not None:
    named["bos_token"] = words.piece(words.bos_id)
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
  """`named`, then what the files beside the tokenizer at `path` list."""
  found = list(named)
  for name in ("generation_config.json", "config.json"):
    file = path.parent / name
    listed = _read(file).get("eos_token_id")
    listed = [] if listed is None else listed
    for number in listed if isinstance(listed, list) else [listed]:
      if type(number) is not int or not known(number):
        raise ValueError(
          f"{file}: eos_token_id {number!r} is not in the vocabulary"
        )
      found.append(number)
  if not found:
    config = path.parent / "tokenizer_config.json"
    state = "names no eos_token" if config.exists() else "is missing"
    raise ValueError(f"{config} {state}; it says which token is EOS")
  return tuple(dict.fromkeys(found))


def _chat_template(directory: pathlib.Path) -> str | None:
  """The Jinja text of `chat_template.jinja` or of tokenizer_config.json."""
  file = directory / "chat_template.jinja"
  if file.exists():
    return file.read_text(encoding="utf-8")
  config = directory / "tokenizer_config.json"
  found = _read(config).get("chat_template")
  if isinstance(found, list):  # Several, by name.
    found = {entry["name"]: entry["template"] for entry in found}.get("default")
  if found is not None and not isinstance(found, str):
    raise ValueError(f"{config}: chat_template {found!r} is no text")
  return found


def fit(texts: Iterable[str], path: pathlib.Path, *, word_share: float) -> None:
  """Trains a SentencePiece model on `texts` and writes it to `path`.

  Characters are tokens, digits among them; so are the template's tags and, with
  the space before them, words that stand in at least `word_share` of the texts.
  A rarer word is spelled out, which is what one asks of a model that spells.
  Id 0 is unknown, 1 begins a text (unused) and 2 ends it.
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
    # Also those that stand in words alone, where words are tokens.
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


def fit_once(
  texts: Iterable[str],
  directory: pathlib.Path,
  *,
  documents: int,
  word_share: float,
) -> SentencePiece:
  """The tokenizer in `directory`; first trained there if there is none.

  Args:
    texts: what to train on.
    directory: where it is, or will be.
    documents: how many of `texts` to read.
    word_share: see `fit`.
  """
  path = directory / "tokenizer.model"
  if not path.exists():
    fit(itertools.islice(texts, documents), path, word_share=word_share)
  return SentencePiece(path)
