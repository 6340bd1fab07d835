r"""Templates: functions that render a conversation as one text.

A conversation is a list of messages, {"role": "user", "content": "Hi"}, with
the roles system, user, assistant and tool. `template(messages)` renders it.
With `generation_prompt=True`, the text that precedes the next answer is added.

A config's `template` is one of three things; see `find`:

    "r1_zero"                                     a name in TEMPLATES
    "User: {question}\nAssistant: <think>\n"      a text, for base models
    "chat"                                        the tokenizer's chat template
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
CHAT = "chat"  # The name of the tokenizer's chat template.
QUESTION = "{question}"  # The placeholder in the text of a template.

# arXiv:2501.12948, Table 1, verbatim.
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
  r"""A template for base models: a text around the last question.

  Examples:
    >>> template = QuestionOnly("User: {question}\nAssistant: <think>\n")
    >>> template(user_turn("1 + 1 = "), generation_prompt=True)
    'User: 1 + 1 =\nAssistant: <think>\n'
  """

  text: str  # It holds "{question}" once.

  def __post_init__(self):
    if self.text.count(QUESTION) != 1:
      raise ValueError(
        f"a template must hold {QUESTION} once, got {self.text!r:.80}"
      )

  @property
  def after(self) -> str:
    """The text after the question."""
    return self.text.partition(QUESTION)[2]

  def __call__(
    self, messages: Sequence[Message], *, generation_prompt: bool = False
  ) -> str:
    """Returns the text around the last message, which must be a user's.

    Without `generation_prompt` it ends with the question.
    """
    check_messages(messages)
    if any(message["role"] == "system" for message in messages):
      raise ValueError("this template does not support system messages")
    if not messages or messages[-1]["role"] != "user":
      raise ValueError("this template needs a user's message at the end")
    text = self.fill(messages[-1]["content"])
    return text if generation_prompt else text.removesuffix(self.after)

  def fill(self, question: str) -> str:
    """Returns the text with a question in it."""
    return self.text.replace(QUESTION, question.strip())


def deepseek_r1(
  messages: Sequence[Message], *, generation_prompt: bool = False
) -> str:
  """Returns a conversation in DeepSeek-R1's template of January 2025.

  Thoughts of past answers are removed. Of several tool calls, only the first in
  a conversation opens a turn, as in the released template.
  """
  check_messages(messages)
  system = [m["content"] for m in messages if m["role"] == "system"]
  texts = ["<｜begin▁of▁sentence｜>", "\n\n".join(system)]
  called = reported = False  # Whether there was a tool call, and an output.
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
  """Returns a conversation in the later template, which prefills "<think>".

  The templates of the distilled models differ from it for tools, and for
  several system messages, of which they keep only the last.
  """
  text = deepseek_r1(messages, generation_prompt=generation_prompt)
  opens = generation_prompt and text.endswith("<｜Assistant｜>")
  return text + f"{BEGIN_THOUGHT}\n" if opens else text


def _tool_call(call: Mapping[str, Any]) -> str:
  """Returns the text of a tool call."""
  function = call["function"]
  return (
    f"<｜tool▁call▁begin｜>{call['type']}<｜tool▁sep｜>{function['name']}\n"
    f"```json\n{function['arguments']}\n```<｜tool▁call▁end｜>"
  )


def tokenizer_template(tokenizer: Tokenizer) -> Template:
  """Returns the tokenizer's Jinja template, which runs in a sandbox.

  It renders with the same variables as in `transformers`, without tools:
  `messages`, the special tokens by name (`bos_token`, `pad_token`, ...) and
  `add_generation_prompt`. Raises ValueError if there is no template; the
  template raises it for messages that it refuses or fails on.
  """
  if tokenizer.chat_template is None:
    raise ValueError("the tokenizer has no chat template")
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
        **tokenizer.special_tokens_map,
      )
    except Exception as error:  # A template can raise errors of any type.
      raise ValueError(f"the chat template failed: {error}") from error

  return template


TEMPLATES: dict[str, Template] = {
  "r1_zero": QuestionOnly(R1_ZERO),
  "plain": QuestionOnly(PLAIN),
  "deepseek_r1": deepseek_r1,
  "deepseek_r1_think": deepseek_r1_think,
}


def find(template: str, tokenizer: Tokenizer) -> Template:
  """Returns the template that a config's `template` means.

  Raises ValueError for a value that `check` refuses, and for "chat" if the
  tokenizer has no chat template.
  """
  check(template)
  if template == CHAT:
    return tokenizer_template(tokenizer)
  return TEMPLATES.get(template) or QuestionOnly(template)


def check(template: str) -> None:
  """Raises ValueError if a config's `template` is invalid."""
  if template in TEMPLATES or template == CHAT:
    return
  if "{" in template or any(c.isspace() for c in template):
    QuestionOnly(template)
    return
  raise ValueError(
    config.unknown("template", template, [*TEMPLATES, CHAT])
    + "; or a text with {question} in it"
  )


def user_turn(question: str) -> list[Message]:
  """Returns a conversation with one question of a user."""
  return [{"role": "user", "content": question}]


def check_messages(messages: Sequence[Message]) -> None:
  """Raises ValueError unless every message has a known role and a text."""
  for i, message in enumerate(messages):
    if message.get("role") not in ROLES:
      raise ValueError(
        f"message {i}: role must be one of {', '.join(ROLES)}, got "
        f"{message.get('role')!r}"
      )
    content = message.get("content")
    calls = message["role"] == "assistant" and message.get("tool_calls")
    if not isinstance(content, str) and not (content is None and calls):
      raise ValueError(f"message {i}: content must be text, got {content!r}")
