r"""Templates: a conversation as one text, which ends where the model goes on.

A conversation is a list of messages, {"role": "user", "content": "Hi"}; roles
are system, user, assistant and tool. `template(messages)` writes it, and with
`generation_prompt=True` adds what comes before the next answer.

A config's `template` is one of three things; see `find`:

    "r1_zero"             a name of TEMPLATES
    "User: {question}\nAssistant: <think>\n"      a text, for base models
    "chat"                the tokenizer's own chat template, for chat models
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from r1jax import config
from r1jax.data import jinja
from r1jax.types import Tokenizer

Message = Mapping[str, Any]
Template = Callable[..., str]

BEGIN_THOUGHT, END_THOUGHT = "<think>", "</think>"
ROLES = ("system", "user", "assistant", "tool")
OWN = "chat"  # The name of the tokenizer's own template.
QUESTION = "{question}"  # In the text of a template, the question's place.

# arXiv:2501.12948, Table 1, word for word.
R1_ZERO = (
  "A conversation between User and Assistant. The user asks a question, and "
  "the Assistant solves it. The assistant first thinks about the reasoning "
  "process in the mind and then provides the user with the answer. The "
  "reasoning process and answer are enclosed within <think> </think> and "
  "<answer> </answer> tags, respectively, i.e., <think> reasoning process here "
  "</think> <answer> answer here </answer>. User: {question}. Assistant:"
)
PLAIN = "{question}\n"


@dataclasses.dataclass(frozen=True)
class QuestionOnly:
  """A template for base models: a text with the last question in it."""

  text: str  # With "{question}" in the question's place, once.

  def __post_init__(self):
    if self.text.count(QUESTION) != 1:
      raise ValueError(
        f"a template must hold {QUESTION} once, got {self.text!r:.80}"
      )

  @property
  def after(self) -> str:
    """What stands behind the question."""
    return self.text.partition(QUESTION)[2]

  def __call__(
    self, messages: Sequence[Message], *, generation_prompt: bool = False
  ) -> str:
    """The text around the last question, which must be a user's.

    Without `generation_prompt` it ends with the question.
    """
    check_messages(messages)
    if any(message["role"] == "system" for message in messages):
      raise ValueError("this template has no place for a system message")
    if not messages or messages[-1]["role"] != "user":
      raise ValueError("this template writes questions, and none is the last")
    text = self.fill(messages[-1]["content"])
    return text if generation_prompt else text.removesuffix(self.after)

  def fill(self, question: str) -> str:
    """The text around `question`."""
    return self.text.replace(QUESTION, question.strip())


def deepseek_r1(
  messages: Sequence[Message], *, generation_prompt: bool = False
) -> str:
  """The text of a conversation as DeepSeek-R1 first read it (January 2025).

  Past answers lose their thoughts. Tool calls follow the released template to
  the letter, in that only the first of a conversation opens a turn.
  """
  check_messages(messages)
  system = [m["content"] for m in messages if m["role"] == "system"]
  texts = ["<｜begin▁of▁sentence｜>", "\n\n".join(system)]
  called = reported = False  # Whether a tool ever was, and ever answered.
  open_outputs = False  # Whether the last message is a tool's.
  for message in messages:
    role, content = message["role"], message["content"]
    if role == "user":
      texts += ["<｜User｜>", content]
    elif role == "tool":
      if not reported:
        texts.append("<｜tool▁outputs▁begin｜>")
      texts += ["<｜tool▁output▁begin｜>", content, "<｜tool▁output▁end｜>"]
      reported = True
    elif message.get("tool_calls"):
      opening = f"<｜Assistant｜>{content or ''}<｜tool▁calls▁begin｜>"
      calls = "\n".join(map(_tool_call, message["tool_calls"]))
      texts += ["\n" if called else opening, calls]
      texts.append("<｜tool▁calls▁end｜><｜end▁of▁sentence｜>")
      called = True
    elif role == "assistant":
      if open_outputs:
        texts += ["<｜tool▁outputs▁end｜>", content]
      else:
        texts += ["<｜Assistant｜>", content.rpartition(END_THOUGHT)[2]]
      texts.append("<｜end▁of▁sentence｜>")
    if role != "system":
      open_outputs = role == "tool"
  if open_outputs:
    texts.append("<｜tool▁outputs▁end｜>")
  elif generation_prompt:
    texts.append("<｜Assistant｜>")
  return "".join(texts)


def deepseek_r1_think(
  messages: Sequence[Message], *, generation_prompt: bool = False
) -> str:
  """The same in the later release, which opens the thought itself.

  The distilled models' own templates differ where there are tools, or several
  system messages, of which they keep the last.
  """
  text = deepseek_r1(messages, generation_prompt=generation_prompt)
  opens = generation_prompt and text.endswith("<｜Assistant｜>")
  return text + f"{BEGIN_THOUGHT}\n" if opens else text


def _tool_call(call: Mapping[str, Any]) -> str:
  function = call["function"]
  return (
    f"<｜tool▁call▁begin｜>{call['type']}<｜tool▁sep｜>{function['name']}\n"
    f"```json\n{function['arguments']}\n```<｜tool▁call▁end｜>"
  )


def own_template(tokenizer: Tokenizer) -> Template:
  """The Jinja template that came with the tokenizer, in a sandbox.

  It is given what `transformers` gives it: `messages`, the special tokens by
  their names (`bos_token`, `pad_token`, ...) and `add_generation_prompt`,
  without tools. What it refuses, or gets wrong, is a ValueError.
  """
  if tokenizer.chat_template is None:
    raise ValueError("the tokenizer has no chat template of its own")
  compiled = jinja.compiled(tokenizer.chat_template)

  def template(
    messages: Sequence[Message], *, generation_prompt: bool = False
  ) -> str:
    check_messages(messages)
    try:
      return compiled.render(
        messages=list(messages),
        add_generation_prompt=generation_prompt,
        tools=None,
        documents=None,
        **tokenizer.named_specials,
      )
    except Exception as error:  # It is a program; it may fail in any way.
      raise ValueError(f"the chat template says: {error}") from error

  return template


TEMPLATES: dict[str, Template] = {
  "r1_zero": QuestionOnly(R1_ZERO),
  "plain": QuestionOnly(PLAIN),
  "deepseek_r1": deepseek_r1,
  "deepseek_r1_think": deepseek_r1_think,
}


def find(template: str, tokenizer: Tokenizer) -> Template:
  """The function of messages that a config's `template` stands for.

  Raises ValueError if there is none.
  """
  check(template)
  if template == OWN:
    return own_template(tokenizer)
  return TEMPLATES.get(template) or QuestionOnly(template)


def check(template: str) -> None:
  """Raises ValueError for what no tokenizer could make a template of."""
  if template in TEMPLATES or template == OWN:
    return
  if "{" in template or any(c.isspace() for c in template):
    QuestionOnly(template)
    return
  raise ValueError(
    config.unknown("template", template, [*TEMPLATES, OWN])
    + "; or a text with {question} in it"
  )


def user_turn(question: str) -> list[Message]:
  """The conversation that begins with `question`."""
  return [{"role": "user", "content": question}]


def check_messages(messages: Sequence[Message]) -> None:
  """Raises ValueError unless every message has a known role and a text."""
  for i, message in enumerate(messages):
    if message.get("role") not in ROLES:
      raise ValueError(
        f"message {i}: role {message.get('role')!r} is none of "
        + ", ".join(ROLES)
      )
    content = message.get("content")
    calls = message["role"] == "assistant" and message.get("tool_calls")
    if not isinstance(content, str) and not (content is None and calls):
      raise ValueError(f"message {i}: content {content!r} is no text")
