"""Texts to imitate: the token ids of examples, and the weight of each token.

A conversation is what a model would have seen and written. A template may show
past answers in another form, as DeepSeek-R1's does, which leaves out past
thoughts. Then each answer is a text of its own. Where an answer and its prompt
are the beginning of the next prompt, both answers are learned in one text.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from r1jax.data import chat, templates
from r1jax.types import Example, Tokenizer


class Text(NamedTuple):
  """The tokens of a text, and the weight of each as a target of the loss.

  A token of weight 0 is read, but not learned. The last token is learned.
  """

  tokens: Int[np.ndarray, "T"]
  weights: Float[np.ndarray, "T"]

  @property
  def head(self) -> int:
    """The number of tokens before the first that is learned."""
    return int(np.argmax(self.weights > 0))

  @property
  def slots(self) -> int:
    """The slots of a row that the text takes: its last token is not read."""
    return max(len(self.tokens) - 1, 0)


def texts(
  example: Example, template: templates.Template, tokenizer: Tokenizer
) -> list[Text]:
  """Returns the texts of an example.

  An example with `messages` in its metadata is a conversation; see
  `data.conversations`. Others are a question and its answer. An example without
  a prompt is a document, all of which is learned. EOS is learned after every
  answer and document.

  Raises ValueError for messages that the template cannot render, or that have
  no answer.
  """
  messages, weight = example.metadata.get("messages"), 1.0
  if messages is not None:
    weight = example.metadata.get("weight", 1.0)
    if all(message["role"] != "assistant" for message in messages):
      raise ValueError("the conversation has no answer")
  elif example.prompt:
    answer = {"role": "assistant", "content": example.answer}
    messages = [*templates.user_turn(example.prompt), answer]
  else:
    document = [*tokenizer.encode(example.answer), tokenizer.eos_ids[0]]
    piece = chat.Demonstration([*tokenizer.prefix_ids], document)
    return _joined([(piece, 1.0)])
  pieces = chat.demonstrations(messages, template, tokenizer, turns="each")
  weights = [
    weight * message.get("weight", 1.0)
    for message in messages
    if message["role"] == "assistant"
  ]
  return _joined(zip(pieces, weights, strict=True))


def _joined(pieces: Iterable[tuple[chat.Demonstration, float]]) -> list[Text]:
  """Returns the texts of weighted answers; see the module."""
  ids: list[list[int]] = []
  weights: list[list[float]] = []
  for (prompt, completion), weight in pieces:
    if not ids or prompt[: len(ids[-1])] != ids[-1]:
      ids.append([])
      weights.append([])
    more = prompt[len(ids[-1]) :]
    ids[-1] += [*more, *completion]
    weights[-1] += [0.0] * len(more) + [weight] * len(completion)
  made = []
  for tokens, values in zip(ids, weights):
    learned = np.flatnonzero(values)
    if learned.size:  # What follows the last token to learn is not needed.
      end = learned[-1] + 1
      made.append(
        Text(np.array(tokens[:end], np.int32), np.array(values[:end]))
      )
  return made
