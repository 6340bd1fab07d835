"""Prompt templates: a question to the text that the policy is given."""

from r1jax.types import Tokenizer

# arXiv:2501.12948, Table 1, word for word; "prompt" is the question's place.
R1_ZERO = (
  "A conversation between User and Assistant. The user asks a question, and "
  "the Assistant solves it. The assistant first thinks about the reasoning "
  "process in the mind and then provides the user with the answer. The "
  "reasoning process and answer are enclosed within <think> </think> and "
  "<answer> </answer> tags, respectively, i.e., <think> reasoning process here "
  "</think> <answer> answer here </answer>. User: prompt. Assistant:"
)


def r1_zero(question: str) -> str:
  """The paper's template around `question`."""
  before, _, after = R1_ZERO.rpartition("prompt")
  return before + question.strip() + after


def plain(question: str) -> str:
  """No template: the question and a line break."""
  return question.strip() + "\n"


TEMPLATES = {"r1_zero": r1_zero, "plain": plain}


def encode(template: str, question: str, tokenizer: Tokenizer) -> list[int]:
  """Token ids of `question` in the template, BOS included where it belongs."""
  text = TEMPLATES[template](question)
  return [*tokenizer.prefix_ids, *tokenizer.encode(text)]


def shared_tokens(template: str, tokenizer: Tokenizer) -> tuple[int, ...]:
  """The token ids with which every prompt in this template begins.

  Found by trying questions that have nothing in common. The last token that
  their texts share is left out: what follows may still be joined to it.
  """
  first, *others = (
    tokenizer.encode(TEMPLATES[template](question))
    for question in ("What", "0", "(x", "\u8ba1\u7b97")
  )
  size = 0
  while all(size < len(o) and o[size] == first[size] for o in others):
    size += 1
  return (*tokenizer.prefix_ids, *first[: max(size - 1, 0)])
