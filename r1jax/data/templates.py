"""Prompt templates: functions from a question to the policy's input text."""

from collections.abc import Sequence

from r1jax.types import Example, Tokenizer

# arXiv:2501.12948, Table 1, verbatim. The question replaces "prompt".
R1_ZERO = (
  "A conversation between User and Assistant. The user asks a question, and "
  "the Assistant solves it. The assistant first thinks about the reasoning "
  "process in the mind and then provides the user with the answer. The "
  "reasoning process and answer are enclosed within <think> </think> and "
  "<answer> </answer> tags, respectively, i.e., <think> reasoning process here "
  "</think> <answer> answer here </answer>. User: prompt. Assistant:"
)


def r1_zero(question: str) -> str:
  """Returns the question in R1-Zero's template."""
  before, _, after = R1_ZERO.rpartition("prompt")
  return before + question.strip() + after


def plain(question: str) -> str:
  """Returns the question and a line break, without any template."""
  return question.strip() + "\n"


TEMPLATES = {"r1_zero": r1_zero, "plain": plain}


def encode(template: str, question: str, tokenizer: Tokenizer) -> list[int]:
  """Returns the token ids of a question in a template.

  They begin with the tokenizer's `prefix_ids`, such as BOS.
  """
  text = TEMPLATES[template](question)
  return [*tokenizer.prefix_ids, *tokenizer.encode(text)]


def encode_prompts(
  examples: Sequence[Example], template: str, tokenizer: Tokenizer
) -> list[list[int]]:
  """Returns the token ids of each example's prompt in a template."""
  return [encode(template, example.prompt, tokenizer) for example in examples]


def shared_tokens(template: str, tokenizer: Tokenizer) -> tuple[int, ...]:
  """Returns the token ids with which every prompt in a template begins.

  It compares the ids of questions that have nothing in common. The last common
  token is left out, because another question could be merged with it.
  """
  first, *others = (
    tokenizer.encode(TEMPLATES[template](question))
    for question in ("What", "0", "(x", "\u8ba1\u7b97")
  )
  size = 0
  while all(size < len(o) and o[size] == first[size] for o in others):
    size += 1
  return (*tokenizer.prefix_ids, *first[: max(size - 1, 0)])
