"""Text to token ids and back, behind one small interface.

`load` opens a directory in Hugging Face layout: `tokenizer.model`
(SentencePiece) or `tokenizer.json` (plain or gzipped).
"""

import collections
import gzip
import io
import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Sequence

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def load(path: str):
  """The tokenizer in the directory `path`; see `r1jax.types.Tokenizer`."""
  if not path:
    raise ValueError(
      "tokenizer.path is not set; give the directory of a Hugging Face "
      "tokenizer, --config.tokenizer.path=DIRECTORY"
    )
  directory = pathlib.Path(path)
  if (directory / "tokenizer.model").exists():
    return SentencePiece(directory / "tokenizer.model")
  for name in ("tokenizer.json", "tokenizer.json.gz"):
    if (directory / name).exists():
      return HuggingFace(directory / name)
  raise ValueError(
    f"{directory} holds no tokenizer.model, tokenizer.json or "
    "tokenizer.json.gz; give the directory of a Hugging Face tokenizer"
  )


class SentencePiece:
  """A SentencePiece model; its `</s>` ends a completion."""

  def __init__(self, path: pathlib.Path):
    import sentencepiece

    self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    self.vocab_size = self._model.vocab_size()
    self.eos_ids = (self._model.eos_id(),)

  def encode(self, text: str) -> list[int]:
    """Token ids of `text`; no BOS, no EOS."""
    return self._model.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    """The text of `ids`, EOS dropped."""
    return self._model.decode([int(i) for i in ids if i not in self.eos_ids])

  def piece(self, token: int) -> str:
    """The token as the vocabulary spells it."""
    return self._model.id_to_piece(token)


class HuggingFace:
  """A `tokenizer.json`; EOS is what `tokenizer_config.json` beside it says."""

  def __init__(self, path: pathlib.Path):
    import tokenizers

    data = path.read_bytes()
    if path.suffix == ".gz":
      data = gzip.decompress(data)
    self._model = tokenizers.Tokenizer.from_str(data.decode())
    self.vocab_size = self._model.get_vocab_size()
    self.eos_ids = (self._eos_id(path.parent / "tokenizer_config.json"),)

  def _eos_id(self, config: pathlib.Path) -> int:
    if not config.exists():
      raise ValueError(f"{config} is missing; it says which token is EOS")
    token = json.loads(config.read_text()).get("eos_token")
    token = token["content"] if isinstance(token, dict) else token
    number = None if token is None else self._model.token_to_id(token)
    if number is None:
      raise ValueError(
        f"{config}: eos_token {token!r} is not in the vocabulary"
      )
    return number

  def encode(self, text: str) -> list[int]:
    """Token ids of `text`; no BOS, no EOS."""
    return self._model.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int]) -> str:
    """The text of `ids`, EOS dropped; other special tokens are shown."""
    ids = [int(i) for i in ids if i not in self.eos_ids]
    return self._model.decode(ids, skip_special_tokens=False)

  def piece(self, token: int) -> str:
    """The token as the vocabulary spells it."""
    return self._model.id_to_token(token)


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
