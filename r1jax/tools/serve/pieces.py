"""The text and the bytes of single tokens, as log-probabilities show them."""

import functools
import re

from r1jax.data.chat import ChatTokenizer

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # A byte in SentencePiece.


@functools.cache
def byte_characters() -> dict[str, int]:
  """The bytes of the characters that stand for them in a byte-level BPE.

  Printable characters of Latin-1 stand for themselves, and those from U+0100 on
  for all other bytes, as in GPT-2.
  """
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  return {chr(byte): byte for byte in printable} | {
    chr(256 + i): byte for i, byte in enumerate(others)
  }


class Pieces:
  """What each token of a tokenizer adds to a text."""

  def __init__(self, tokenizer: ChatTokenizer):
    """Nothing is decoded yet."""
    self._tokenizer = tokenizer
    # A token may lose the space that it begins with at the start of a text.
    self._before = tokenizer.encode("a")[-1:]
    self._start = tokenizer.decode(self._before)
    self._texts: dict[int, str] = {}

  def text(self, token: int) -> str:
    r"""Its text; that of a part of a character is "bytes:\xe2\x80"."""
    if token not in self._texts:
      text = self._decoded(token)
      if "\ufffd" in text:
        text = "bytes:" + "".join(f"\\x{b:02x}" for b in self.bytes(token))
      self._texts[token] = text
    return self._texts[token]

  def bytes(self, token: int) -> bytes:
    """Its bytes in UTF-8."""
    text = self._decoded(token)
    if "\ufffd" not in text:
      return text.encode()
    name, table = self._tokenizer.id_to_token(token), byte_characters()
    if match := BYTE.fullmatch(name):
      return bytes([int(match[1], 16)])
    if all(character in table for character in name):
      return bytes(table[character] for character in name)
    return text.encode()

  def _decoded(self, token: int) -> str:
    """Its text, in which U+FFFD stands for parts of characters."""
    if token not in self._tokenizer.eos_ids:
      text = self._tokenizer.decode([*self._before, token])
      if text.startswith(self._start):
        return text[len(self._start) :]
    return self._tokenizer.id_to_token(token) or ""
