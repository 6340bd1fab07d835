"""Sends many requests at once to a model behind an OpenAI-compatible endpoint.

    values = ask(Endpoint(base_url, model), requests, read)  # Starts at once.
    values()  # Waits for `read(request, reply)` of each request, or None.

Judges ask for verdicts so; `training.external_teacher` asks for samples.

All requests of a process share a thread with an event loop, so that a deadline
can cancel a request in any state. The timeouts of HTTP libraries apply to each
read alone: a server that sends one byte per second never exceeds them.
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
from typing import Any, NamedTuple, TypeVar

logger = logging.getLogger(__name__)

Value = TypeVar("Value")  # Of a request.

BACKOFF = 0.5  # Seconds before the second attempt; doubles each time.
CLOSING = 1.0  # Seconds to wait for connections to close.
RETRIED = (408, 409, 425, 429)  # Status codes; those of 500 and above, too.
STARTING = threading.Lock()  # Held while the event loop is started.


class Endpoint(NamedTuple):
  """A model, the server that has it, and the limits of a request.

  The server's API key is read from the environment variable OPENAI_API_KEY.
  """

  base_url: str  # Such as http://localhost:8000/v1.
  model: str  # Cached replies depend on it, and not on the URL.
  deadline: float = 120.0  # Seconds per request, with all attempts and waits.
  attempts: int = 5  # To get a reply from which `read` returns a value.
  concurrency: int = 32  # Requests at a time, of all calls in a process.
  cache: str | None = None  # A directory of replies; processes may share it.
  parameters: Mapping[str, Any] = {}  # Of the API: temperature and so on.


class Request(NamedTuple):
  """The messages of a request; equal requests are sent once."""

  system: str  # "" for none.
  user: str
  sample: int = 0  # Distinguishes several replies to the same messages.
  # (user, assistant) turns of the conversation before `user`.
  turns: tuple[tuple[str, str], ...] = ()

  @property
  def messages(self) -> list[dict[str, str]]:
    """The messages of the API."""
    message = lambda role, text: {"role": role, "content": _utf8(text)}
    messages = [message("system", self.system)] if self.system else []
    for user, assistant in self.turns:
      messages += [message("user", user), message("assistant", assistant)]
    return [*messages, message("user", self.user)]


def text(completion: Any) -> str | None:
  """Returns the text of the first choice; None if there is none."""
  match completion:
    case object(choices=[object(message=object(content=str(text))), *_]):
      return text
  return None


def ask(
  endpoint: Endpoint,
  requests: Sequence[Request],
  read: Callable[[Request, str], Value | None],
  extract: Callable[[Any], str | None] = text,
) -> Callable[[], list[Value | None]]:
  """Starts the requests in the background; call the result for their values.

  The value of a request is `read(request, reply)`. If that is None, or the
  request fails, it is sent again, up to `attempts` times and until its
  deadline; then its value is None. A warning sums up the failures. Only replies
  with a value are cached.

  Args:
    endpoint: answers.
    requests: equal ones are sent once.
    read: the value of a reply; None for a reply that cannot be read.
    extract: the reply, as it is cached, of the API's completion; None without.

  Raises ValueError for an invalid endpoint, and ImportError without the
  `openai` package, even if there are no requests.
  """
  try:
    import openai  # Takes a second, and is optional.
  except ImportError as error:
    raise ImportError(
      "endpoints need the openai package, which is not installed; "
      'run: pip install "r1jax[judge]"'
    ) from error
  _check(endpoint, openai.resources.chat.AsyncCompletions.create)
  if not requests:
    return list
  with STARTING:
    loop = _loop(os.getpid())
  asking = _ask_all(openai, endpoint, requests, read, extract)
  return asyncio.run_coroutine_threadsafe(asking, loop).result


@functools.cache
def _loop(pid: int) -> asyncio.AbstractEventLoop:
  """Returns the event loop of this process, which runs in its own thread."""
  del pid  # The key of the cache: a forked process does not have the thread.
  loop = asyncio.new_event_loop()
  thread = threading.Thread(
    target=loop.run_forever, name="r1jax-endpoint", daemon=True
  )
  thread.start()
  return loop


@functools.cache
def _turns(loop: Any, base_url: str, concurrency: int) -> asyncio.Semaphore:
  """Returns the semaphore that limits the concurrent requests to a server."""
  del loop, base_url
  return asyncio.Semaphore(concurrency)


def _check(endpoint: Endpoint, create: Callable) -> None:
  """Raises ValueError for invalid fields or unknown parameters."""
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
    arguments = dict(model="", messages=[], **endpoint.parameters)
    inspect.signature(create).bind(None, **arguments)
  except TypeError as error:
    raise ValueError(
      f"parameters: {error}; put parameters that are special to this server "
      "into parameters.extra_body"
    ) from None


async def _ask_all(
  openai, endpoint, requests, read, extract
) -> list[Any | None]:
  """Returns the values of all requests, and logs the failures."""
  loop = asyncio.get_running_loop()
  turns = _turns(loop, endpoint.base_url, endpoint.concurrency)
  failures: dict[Request, str] = {}  # The last error of each failed request.

  async def settle(client, request: Request) -> Any | None:
    async with turns:
      failures[request] = f"no reply within {endpoint.deadline:g} s"
      try:
        async with asyncio.timeout(endpoint.deadline) as limit:
          value = await _value(
            openai,
            client,
            endpoint,
            request,
            read,
            extract,
            limit.when(),
            failures,
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


async def _value(
  openai, client, endpoint, request, read, extract, end: float, failures: dict
) -> Any | None:
  """Returns the value of a request, cached or requested; None if it fails."""
  key = _key(endpoint, request)
  file = endpoint.cache and pathlib.Path(endpoint.cache, key[:2], f"{key}.json")
  if file and (reply := _read_cache(file)) is not None:
    value = read(request, reply)
    if value is not None:
      return value
  # With jitter, so that requests are not all sent again at the same time.
  wait = BACKOFF * (1 + int(key[:4], 16) / 2**16)
  for attempt in range(endpoint.attempts):
    if attempt:
      if asyncio.get_running_loop().time() + pause > end:
        return None
      await asyncio.sleep(pause)
    pause = wait * 2**attempt
    try:
      completion = await client.chat.completions.create(
        model=endpoint.model, messages=request.messages, **endpoint.parameters
      )
    except openai.APIStatusError as error:
      failures[request] = f"status {error.status_code} ({str(error)[:200]})"
      if error.status_code < 500 and error.status_code not in RETRIED:
        return None
      pause = max(pause, _retry_after(error.response.headers))
      continue
    except Exception as error:  # Malformed replies raise errors of any type.
      failures[request] = f"{type(error).__name__} ({str(error)[:200]})"
      continue
    reply = extract(completion)
    value = None if reply is None else read(request, reply)
    if value is not None:
      if file:
        _write_cache(file, endpoint, request, reply)
      return value
    failures[request] = "a reply that cannot be read"
  return None


def _retry_after(headers: Mapping[str, str]) -> float:
  """Returns the seconds to wait that the server asks for; 0 without such."""
  value = headers.get("retry-after", "")
  try:
    if date := email.utils.parsedate_tz(value):
      return max(0.0, email.utils.mktime_tz(date) - time.time())
    return max(0.0, float(value))
  except (ValueError, OverflowError):
    return 0.0


def _utf8(text: str) -> str:
  """Returns the text with "?" for lone surrogates, which cannot be sent."""
  return text.encode("utf-8", "replace").decode()


def _key(endpoint: Endpoint, request: Request) -> str:
  """Returns the cache key: a hash of model, messages and parameters."""
  parts = [endpoint.model, request, dict(endpoint.parameters)]
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_cache(file: pathlib.Path) -> str | None:
  """Returns a cached reply; None if it is missing or damaged."""
  try:
    reply = json.loads(file.read_text("utf-8"))["reply"]
  except (OSError, ValueError, LookupError, TypeError):
    return None
  return reply if isinstance(reply, str) else None


def _write_cache(
  file: pathlib.Path, endpoint: Endpoint, request: Request, reply: str
) -> None:
  """Writes a reply with its request, so that verdicts can be inspected."""
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
    logger.warning("a judge's reply cannot be cached: %s", error)
    with contextlib.suppress(OSError):
      draft.unlink()
