"""From a job of the sampler to the response that a client gets."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from r1jax.tools.serve.choice import Delta, merged
from r1jax.tools.serve.errors import ApiError
from r1jax.tools.serve.metrics import Metrics
from r1jax.tools.serve.replies import Reply
from r1jax.tools.serve.sampler import Job, Sampler, Scores
from r1jax.tools.serve.task import Served, Task

DONE = "data: [DONE]\n\n"
IGNORED = "x-ignored-parameters"  # The header that names them.
IGNORED_LENGTH = 1000  # Characters of it.
LAST_SECONDS = 5.0  # For the end of a stream whose time is up.


class Answer:
  """The answer to one request, while it is sampled."""

  def __init__(
    self,
    task: Task,
    served: Served,
    sampler: Sampler,
    metrics: Metrics,
    timeout: float,
  ):
    """Submits the task; raises ApiError if there is no room for it."""
    self._task, self._reply = task, Reply(task, served)
    self._sampler, self._metrics = sampler, metrics
    self._began = time.monotonic()
    self._deadline = asyncio.get_running_loop().time() + timeout
    self._job: Job = sampler.submit(task)
    self._headers = {"cache-control": "no-store"}
    if task.ignored:
      self._headers[IGNORED] = json.dumps(task.ignored)[:IGNORED_LENGTH]

  async def response(self, request: Request) -> Response:
    """The response, as a stream if the request asks for one."""
    if self._task.parameters.stream:
      return EventStream(self)
    whole = asyncio.ensure_future(self._whole())
    gone = asyncio.ensure_future(disconnected(request))
    try:
      await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
      if not whole.done():
        raise ClientDisconnect
      return JSONResponse(whole.result(), headers=self._headers)
    finally:
      whole.cancel()
      gone.cancel()
      self.close()

  async def chunks(self) -> AsyncIterator[str]:
    """The lines of a stream."""
    reply, asked = self._reply, self._task.parameters
    held: dict[int, list[Delta]] = {}
    try:
      for chunk in reply.first():
        yield line(chunk)
      async for index, delta in self._deltas():
        # Tokens whose text is held back come with the text that follows.
        held.setdefault(index, []).append(delta)
        if delta:
          yield line(reply.chunk(index, merged(held.pop(index))))
      if asked.include_usage:
        yield line(reply.last())
    except ApiError as error:
      yield line(error.content())
    yield DONE

  def close(self) -> None:
    """Counts the answer; one that has not ended is cancelled."""
    if self._sampler.cancel(self._job):
      self._metrics.cancelled.inc()
    usage = self._reply.usage
    self._metrics.prompt_tokens.inc(usage["prompt_tokens"])
    self._metrics.completion_tokens.inc(usage["completion_tokens"])
    self._metrics.seconds.observe(time.monotonic() - self._began)

  @property
  def headers(self) -> dict[str, str]:
    """Of the response."""
    return self._headers

  @property
  def deadline(self) -> float:
    """When it must have ended, in the time of the event loop."""
    return self._deadline

  async def _whole(self) -> dict[str, Any]:
    deltas: list[list[Delta]] = [[] for _ in range(self._task.choices)]
    async for index, delta in self._deltas():
      deltas[index].append(delta)
    return self._reply.whole([*map(merged, deltas)])

  async def _deltas(self) -> AsyncIterator[tuple[int, Delta]]:
    """What the choices grow by, with their indices.

    Raises ApiError if they do not end in time, or the model fails.
    """
    reply, asked = self._reply, self._task.parameters
    scores, begun, left = {}, set(), self._task.choices
    while left:
      event = await self._event()
      if isinstance(event, Scores):
        scores[event.prompt] = event.scores
        continue
      if not begun:
        self._metrics.first_token_seconds.observe(
          time.monotonic() - self._began
        )
      index = event.choice
      if asked.echo and index not in begun:
        yield index, reply.echo(index, scores.get(index // asked.n))
      begun.add(index)
      yield index, reply.push(index, event.tokens, event.finish)
      left -= event.finish > 0

  async def _event(self):
    try:
      async with asyncio.timeout_at(self._deadline):
        event = await self._job.events.get()
    except TimeoutError as error:
      raise ApiError(
        "the answer took too long; ask for fewer tokens, or stream it",
        status=504,
        code="timeout",
      ) from error
    if isinstance(event, ApiError):
      raise event
    return event


class EventStream(StreamingResponse):
  """A stream of server-sent events, which ends when its client leaves."""

  def __init__(self, answer: Answer):
    """Nothing is sent yet."""
    super().__init__(
      answer.chunks(), media_type="text/event-stream", headers=answer.headers
    )
    self._answer = answer

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Sends the stream. A client that reads too slowly loses the rest."""
    try:
      async with asyncio.timeout_at(self._answer.deadline + LAST_SECONDS):
        await super().__call__(scope, receive, send)
    except TimeoutError as error:
      raise ClientDisconnect from error
    finally:
      await self.body_iterator.aclose()
      self._answer.close()


def line(value: dict[str, Any]) -> str:
  """An object as a server-sent event."""
  return f"data: {json.dumps(value, separators=(',', ':'))}\n\n"


async def disconnected(request: Request) -> None:
  """Returns when the client has left; the request's body must be read."""
  while (await request.receive())["type"] != "http.disconnect":
    pass
