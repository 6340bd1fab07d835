"""Asks a model behind an OpenAI-compatible endpoint many things at once.

    values = ask(Endpoint(base_url, model), requests, read)  # It asks already.
    values()  # Waits for what `read` made of each reply, or None.

All requests of a process share a thread with an event loop: a task can be
stopped whatever it waits for. The timeouts of HTTP libraries limit each read
alone, and a server that sends a byte a second keeps within them for ever.
"""

import asyncio
import contextlib
import email.utils
import functools
import hashlib
import inspect
import json
import logging
import math
import os
import pathlib
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

BACKOFF = 0.5  # Seconds before the second attempt; each later wait doubles.
CLOSING = 1.0  # Seconds that values wait for connections to be closed.
RETRIED = (408, 409, 425, 429)  # And 500 and above; others will not change.
STARTING = threading.Lock()  # Of two threads that ask first, one starts a loop.


class Endpoint(NamedTuple):
  """A model, where it is served, and how patiently it is asked.

  The key that the server wants is read from OPENAI_API_KEY.
  """

  base_url: str  # Such as http://localhost:8000/v1.
  model: str  # Replies in the cache are told apart by it, not by the place.
  deadline: float = 120.0  # Seconds for an item: all its attempts and waits.
  attempts: int = 5  # At getting a reply that can be read.
  concurrency: int = 32  # Items that a process asks it at once, of all calls.
  cache: str | None = None  # A directory for replies; processes may share it.
  parameters: Mapping[str, Any] = {}  # For the server: temperature and so on.


class Request(NamedTuple):
  """What to ask; equal requests are asked once."""

  system: str
  user: str
  sample: int = 0  # Tells apart several replies to the same words.


def ask(
  endpoint: Endpoint,
  requests: Sequence[Request],
  read: Callable[[Request, str], float | None],
) -> Callable[[], list[float | None]]:
  """Starts to ask, and returns at once; call the result to wait for values.

  A value is what `read` makes of a reply. One of which it makes None is
  asked for again, as is one that fails; the value of a request that never got
  one is None. What came of it all is logged. Only replies that could be read
  are kept in the cache.

  Raises ValueError for an endpoint that cannot be, and ImportError without the
  `openai` package, both also where there is nothing to ask.
  """
  try:
    import openai  # A second, and an optional extra.
  except ImportError as error:
    raise ImportError(
      "a judge is asked through the openai package, which is not installed; "
      'run: pip install "r1jax[judge]"'
    ) from error
  _check(endpoint, openai.resources.chat.AsyncCompletions.create)
  if not requests:
    return list
  with STARTING:
    loop = _loop(os.getpid())
  asking = _ask_all(openai, endpoint, requests, read)
  return asyncio.run_coroutine_threadsafe(asking, loop).result


@functools.cache
def _loop(pid: int) -> asyncio.AbstractEventLoop:
  """The loop of this process, which runs in a thread of its own."""
  del pid  # A thread is not forked along.
  loop = asyncio.new_event_loop()
  thread = threading.Thread(
    target=loop.run_forever, name="r1jax-endpoint", daemon=True
  )
  thread.start()
  return loop


@functools.cache
def _turns(loop: Any, base_url: str, concurrency: int) -> asyncio.Semaphore:
  """What limits the items that are asked of one server at once."""
  del loop, base_url
  return asyncio.Semaphore(concurrency)


def _check(endpoint: Endpoint, create: Callable) -> None:
  """Raises ValueError for what no endpoint can have, or `create` not take."""
  if not endpoint.base_url.startswith(("http://", "https://")):
    raise ValueError(
      f"base_url must start with http:// or https://, got {endpoint.base_url!r}"
    )
  if not endpoint.model:
    raise ValueError("model must name the model that the endpoint serves")
  if not 0 < endpoint.deadline < math.inf:
    raise ValueError(f"deadline must be seconds, got {endpoint.deadline!r}")
  for name in ("attempts", "concurrency"):
    if getattr(endpoint, name) < 1:
      raise ValueError(
        f"{name} must be 1 or more, got {getattr(endpoint, name)}"
      )
  try:
    asked = dict(model="", messages=[], **endpoint.parameters)
    inspect.signature(create).bind(None, **asked)
  except TypeError as error:
    raise ValueError(
      f"parameters: {error}; what only this server knows goes into "
      "parameters.extra_body"
    ) from None


async def _ask_all(openai, endpoint, requests, read) -> list[float | None]:
  """The values of all requests."""
  loop = asyncio.get_running_loop()
  turns = _turns(loop, endpoint.base_url, endpoint.concurrency)
  failures: dict[Request, str] = {}  # What went wrong last with each.

  async def settle(client, request: Request) -> float | None:
    async with turns:
      failures[request] = f"no reply within {endpoint.deadline:g} s"
      try:
        async with asyncio.timeout(endpoint.deadline) as limit:
          value = await _converse(
            openai, client, endpoint, request, read, limit.when(), failures
          )
      except TimeoutError:
        return None
    if value is not None:
      del failures[request]
    return value

  client = openai.AsyncOpenAI(
    base_url=endpoint.base_url,
    api_key=os.environ.get("OPENAI_API_KEY") or "none",
    timeout=endpoint.deadline,
    max_retries=0,
  )
  distinct = [*dict.fromkeys(requests)]
  try:
    settled = await asyncio.gather(*(settle(client, r) for r in distinct))
  finally:
    with contextlib.suppress(TimeoutError):
      async with asyncio.timeout(CLOSING):
        await client.close()
  if failures:
    reasons = Counter(failures.values()).most_common(3)
    logger.warning(
      "%s at %s: %d of %d requests without a usable reply: %s",
      endpoint.model,
      endpoint.base_url,
      len(failures),
      len(distinct),
      "; ".join(f"{count} x {reason}" for reason, count in reasons),
    )
  values = dict(zip(distinct, settled))
  return [values[request] for request in requests]


async def _converse(
  openai, client, endpoint, request, read, end: float, failures: dict
) -> float | None:
  """The value of one request, remembered or asked for; None if it fails."""
  key = _key(endpoint, request)
  file = endpoint.cache and pathlib.Path(endpoint.cache, key[:2], f"{key}.json")
  if file and (reply := _recall(file)) is not None:
    value = read(request, reply)
    if value is not None:
      return value
  wait = BACKOFF * (1 + int(key[:4], 16) / 2**16)  # Not all at the same time.
  for attempt in range(endpoint.attempts):
    if attempt:
      if asyncio.get_running_loop().time() + pause > end:
        return None
      await asyncio.sleep(pause)
    pause = wait * 2**attempt
    try:
      completion = await client.chat.completions.create(
        model=endpoint.model,
        messages=[
          {"role": "system", "content": _utf8(request.system)},
          {"role": "user", "content": _utf8(request.user)},
        ],
        **endpoint.parameters,
      )
    except openai.APIStatusError as error:
      failures[request] = f"status {error.status_code} ({str(error)[:200]})"
      if error.status_code < 500 and error.status_code not in RETRIED:
        return None
      pause = max(pause, _retry_after(error.response.headers))
      continue
    except Exception as error:  # What replies do to a library has no end.
      failures[request] = f"{type(error).__name__} ({str(error)[:200]})"
      continue
    reply = _text(completion)
    value = None if reply is None else read(request, reply)
    if value is not None:
      if file:
        _remember(file, endpoint, request, reply)
      return value
    failures[request] = "a reply that cannot be read"
  return None


def _text(completion: Any) -> str | None:
  """The words of the first choice; None if there are none."""
  match completion:
    case object(choices=[object(message=object(content=str(text))), *_]):
      return text
  return None


def _retry_after(headers: Mapping[str, str]) -> float:
  """Seconds that the server asks to be left alone for; 0 if it does not."""
  value = headers.get("retry-after", "")
  try:
    if date := email.utils.parsedate_tz(value):
      return max(0.0, email.utils.mktime_tz(date) - time.time())
    return max(0.0, float(value))
  except (ValueError, OverflowError):
    return 0.0


def _utf8(text: str) -> str:
  """The text, with ? for what cannot be sent: lone surrogates."""
  return text.encode("utf-8", "replace").decode()


def _key(endpoint: Endpoint, request: Request) -> str:
  """A name for the model, the words and the parameters."""
  asked = [endpoint.model, request, dict(endpoint.parameters)]
  return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _recall(file: pathlib.Path) -> str | None:
  """The reply that was kept; None if there is none, or none that is whole."""
  try:
    reply = json.loads(file.read_text("utf-8"))["reply"]
  except (OSError, ValueError, LookupError, TypeError):
    return None
  return reply if isinstance(reply, str) else None


def _remember(
  file: pathlib.Path, endpoint: Endpoint, request: Request, reply: str
) -> None:
  """Keeps a reply, and what was asked, for whoever wonders at a verdict."""
  entry = dict(
    model=endpoint.model,
    parameters=dict(endpoint.parameters),
    **request._asdict(),
    reply=reply,
  )
  draft = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    draft.write_text(json.dumps(entry), "utf-8")
    os.replace(draft, file)
  except OSError as error:
    logger.warning("a judge's reply is not kept: %s", error)
    with contextlib.suppress(OSError):
      draft.unlink()
