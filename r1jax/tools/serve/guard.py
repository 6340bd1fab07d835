"""What stands before every route: who may ask, and what errors look like."""

import hmac
import sys
import traceback
from collections.abc import Collection
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from r1jax.tools.serve.errors import ApiError
from r1jax.tools.serve.metrics import Metrics

OPEN = ("/", "/health")  # Nobody needs a token for these.
RETRY_SECONDS = "1"  # When a client may ask again whom the queue had no room.


class Guard:
  """A middleware of ASGI."""

  def __init__(
    self,
    app: ASGIApp,
    *,
    metrics: Metrics,
    paths: Collection[str],
    token: str | None = None,
    hosts: Collection[str] | None = None,
  ):
    """Stands before `app`.

    Args:
      app: another application of ASGI.
      metrics: counts requests.
      paths: that are counted by their names; others are one.
      token: that requests must bear; None if they need none.
      hosts: that requests may name as their server; None for any. A web page
        from elsewhere that makes its own name mean this machine names that.
    """
    self._app, self._metrics, self._paths = app, metrics, frozenset(paths)
    self._token, self._hosts = token, hosts

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers a request."""
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    status = 0

    async def watch(message: Message) -> None:
      nonlocal status
      if message["type"] == "http.response.start":
        status = message["status"]
      await send(message)

    try:
      self._check(scope)
      await self._app(scope, receive, watch)
    except ClientDisconnect:
      status = status or 499  # As others log a client that has left.
    except ApiError as error:
      await error_response(error)(scope, receive, watch)
    except Exception:
      traceback.print_exc(file=sys.stderr)
      if not status:
        error = ApiError("the server failed; its log says more", status=500)
        await error_response(error)(scope, receive, watch)
    path = scope["path"] if scope["path"] in self._paths else "other"
    self._metrics.requests.labels(path, str(status)).inc()

  def _check(self, scope: Scope) -> None:
    headers = Headers(scope=scope)
    if self._hosts is not None:
      name = headers.get("host", "").lower()
      if name.rpartition(":")[2].isdigit():
        name = name.rpartition(":")[0]
      if name not in self._hosts:
        raise ApiError("this server has another name", status=403)
    if self._token is None or scope["path"] in OPEN:
      return
    kind, _, token = headers.get("authorization", "").partition(" ")
    right = hmac.compare_digest(token.strip().encode(), self._token.encode())
    if kind.lower() != "bearer" or not right:
      raise ApiError(
        "a bearer token is missing or wrong", status=401, code="invalid_api_key"
      )


def error_response(error: ApiError) -> Response:
  """An error as a response."""
  headers = {"www-authenticate": "Bearer"} if error.status == 401 else {}
  if error.status == 429:
    headers["retry-after"] = RETRY_SECONDS
  return JSONResponse(error.content(), error.status, headers)


async def refused(request: Request, error: Exception) -> Response:
  """The response to a path or a method that there is not."""
  assert isinstance(error, HTTPException)
  message = HTTPStatus(error.status_code).phrase.lower()
  response = error_response(ApiError(message, status=error.status_code))
  response.headers.update(error.headers or {})
  return response
