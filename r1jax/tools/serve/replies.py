"""Answers as OpenAI's API writes them: whole, or as the chunks of a stream."""

import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from r1jax.rollouts.prompt_scores import PromptScores
from r1jax.tools.serve.choice import Choice, Delta, Token
from r1jax.tools.serve.messages import REASONING
from r1jax.tools.serve.pieces import Pieces
from r1jax.tools.serve.task import Served, Task

LOWEST = -9999.0  # Stands for the log-probability of what is impossible.


class Reply:
  """The answer to a task: its choices, and the objects that describe them."""

  def __init__(self, task: Task, served: Served):
    """Nothing is sampled yet."""
    self._task, self._served = task, served
    self.is_chat = task.prefill is not None
    asked = task.parameters
    self.choices = [
      Choice(
        served.tokenizer,
        stop_strings=asked.stop_strings,
        stop_ids=task.stop_ids,
        prefill=task.prefill,
        separate_reasoning=asked.separate_reasoning,
      )
      for _ in range(task.choices)
    ]
    self._offsets = [0] * task.choices  # Characters of the tokens so far.
    self._counts = [0] * task.choices  # Tokens that were sampled.
    self._shown: set[int] = set()  # Choices whose prompt's ids were sent.
    kind = "chatcmpl" if self.is_chat else "cmpl"
    self._id = f"{kind}-{secrets.token_hex(16)}"
    self._created = int(time.time())

  def push(self, index: int, tokens: Sequence[Token], finish: int) -> Delta:
    """What tokens of the engine add to a choice."""
    self._counts[index] += len(tokens)
    if self._task.parameters.max_tokens == 0:
      tokens = []  # The engine samples one at least.
    return self.choices[index].push(tokens, finish)

  def echo(self, index: int, scores: PromptScores | None) -> Delta:
    """The prompt as the beginning of a choice, with its log-probabilities."""
    p = index // self._task.parameters.n
    prompt, text = self._task.prompts[p], self._task.texts[p]
    if text is None:
      text = self._served.tokenizer.decode(prompt)
    if scores is None:
      return Delta(content=text)
    top = self._task.parameters.top_logprobs
    ids = scores.top_ids[:, :top].tolist()
    values = scores.top_logprobs[:, :top].tolist()
    tokens = [Token(prompt[0], None, ())]
    for number, value, *best in zip(
      prompt[1:], scores.logprobs.tolist(), ids, values
    ):
      tokens.append(Token(number, value, [*zip(*best)]))
    return Delta(content=text, prompt=tokens)

  def whole(self, deltas: Sequence[Delta]) -> dict[str, Any]:
    """The answer, from all that each choice has grown by."""
    write = self._message if self.is_chat else self._text
    choices = [write(i, delta) for i, delta in enumerate(deltas)]
    kind = "chat.completion" if self.is_chat else "text_completion"
    made = self._object(kind, choices) | {"usage": self.usage}
    return made | self._prompt_ids(0) if self.is_chat else made

  def first(self) -> Iterator[dict[str, Any]]:
    """The chunks that open the choices of a stream."""
    for index in range(self._task.choices if self.is_chat else 0):
      chunk = self._chunk({"role": "assistant", "content": ""}, index, Delta())
      yield chunk | self._prompt_ids(index)

  def chunk(self, index: int, delta: Delta) -> dict[str, Any]:
    """The chunk of a stream for what a choice has grown by."""
    if not self.is_chat:
      choices = [self._text(index, delta)]
      return self._object("text_completion", choices) | self._no_usage
    values = {"content": delta.content} if delta.content else {}
    if delta.reasoning:
      values |= dict.fromkeys(REASONING, delta.reasoning)
    return self._chunk(values, index, delta)

  def last(self) -> dict[str, Any]:
    """The chunk of a stream that has no choice, but the usage."""
    kind = "chat.completion.chunk" if self.is_chat else "text_completion"
    return self._object(kind, []) | {"usage": self.usage}

  @property
  def usage(self) -> dict[str, int]:
    """Tokens of the prompts, and those that were sampled, EOS included."""
    prompts = sum(map(len, self._task.prompts))
    sampled = sum(self._counts)
    if self._task.parameters.max_tokens == 0:
      sampled = 0
    return {
      "prompt_tokens": prompts,
      "completion_tokens": sampled,
      "total_tokens": prompts + sampled,
    }

  @property
  def _no_usage(self) -> dict[str, None]:
    """What chunks have in its place if the last one has it."""
    return {"usage": None} if self._task.parameters.include_usage else {}

  def _object(self, kind: str, choices: list) -> dict[str, Any]:
    return {
      "id": self._id,
      "object": kind,
      "created": self._created,
      "model": self._served.name,
      "choices": choices,
    }

  def _message(self, index: int, delta: Delta) -> dict[str, Any]:
    cut = self.choices[index].thinking and not delta.content
    message = {
      "role": "assistant",
      "content": None if cut else delta.content,
      "refusal": None,
    }
    message |= dict.fromkeys(REASONING, delta.reasoning or None)
    choice = {
      "index": index,
      "message": message,
      "logprobs": self._chat_logprobs(delta),
      "finish_reason": delta.finish,
    }
    return choice | self._token_ids(delta)

  def _chunk(
    self, values: dict[str, Any], index: int, delta: Delta
  ) -> dict[str, Any]:
    choice = {
      "index": index,
      "delta": values,
      "logprobs": self._chat_logprobs(delta) if delta.tokens else None,
      "finish_reason": delta.finish,
    }
    choice |= self._token_ids(delta)
    return self._object("chat.completion.chunk", [choice]) | self._no_usage

  def _text(self, index: int, delta: Delta) -> dict[str, Any]:
    choice = {
      "index": index,
      "text": delta.content,
      "logprobs": self._text_logprobs(index, delta),
      "finish_reason": delta.finish,
    }
    return choice | self._token_ids(delta) | self._prompt_ids(index)

  def _token_ids(self, delta: Delta) -> dict[str, Any]:
    if not self._task.parameters.return_token_ids:
      return {}
    return {"token_ids": [token.id for token in delta.tokens]}

  def _prompt_ids(self, index: int) -> dict[str, Any]:
    """Those of a choice's prompt, once."""
    asked = self._task.parameters
    if not asked.return_token_ids or index in self._shown:
      return {}
    self._shown.add(index)
    return {"prompt_token_ids": [*self._task.prompts[index // asked.n]]}

  def _chat_logprobs(self, delta: Delta) -> dict[str, Any] | None:
    if not self._task.parameters.logprobs:
      return None
    return {
      "content": [
        _entry(self._served.pieces, token.id, token.logprob)
        | {
          "top_logprobs": [
            _entry(self._served.pieces, *pair) for pair in token.top
          ]
        }
        for token in delta.tokens
      ],
      "refusal": None,
    }

  def _text_logprobs(self, index: int, delta: Delta) -> dict[str, Any] | None:
    """The lists of /v1/completions, one entry for each token.

    The token itself is among the most probable ones, even if it is not.
    """
    if not self._task.parameters.logprobs:
      return None
    text, tokens = self._served.pieces.text, [*delta.prompt, *delta.tokens]
    texts = [text(token.id) for token in tokens]
    offsets = []
    for piece in texts:
      offsets.append(self._offsets[index])
      self._offsets[index] += len(piece)
    return {
      "tokens": texts,
      "token_logprobs": [_bounded(token.logprob) for token in tokens],
      "top_logprobs": [
        None
        if token.logprob is None
        else {
          text(number): _bounded(value)
          for number, value in (*token.top, (token.id, token.logprob))
        }
        for token in tokens
      ],
      "text_offset": offsets,
    }


def _entry(pieces: Pieces, token: int, logprob: float) -> dict[str, Any]:
  return {
    "token": pieces.text(token),
    "logprob": _bounded(logprob),
    "bytes": [*pieces.bytes(token)],
  }


def _bounded(logprob: float | None) -> float | None:
  """A log-probability as JSON can hold it, which knows no infinity."""
  if logprob is None:
    return None
  return logprob if logprob > LOWEST else LOWEST
