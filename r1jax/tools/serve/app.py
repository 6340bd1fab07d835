"""The routes of the server."""

import asyncio
import contextlib
import importlib.resources
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from r1jax.tools.serve import metrics, task
from r1jax.tools.serve.answers import Answer
from r1jax.tools.serve.errors import ApiError
from r1jax.tools.serve.fields import parse
from r1jax.tools.serve.guard import Guard, refused
from r1jax.tools.serve.metrics import Metrics
from r1jax.tools.serve.sampler import Sampler
from r1jax.tools.serve.task import Served, Task

BODY = 32 * 2**20  # Bytes of a request.
BODY_SECONDS = 30.0  # That a client may take to send it.
# The chat page may run what is in it, and talk to this server alone.
PAGE_POLICY = (
  "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
  "connect-src 'self'; base-uri 'none'; form-action 'none'; "
  "frame-ancestors 'none'"
)

Reader = Callable[[Mapping[str, Any], Served], Any]


def make_app(
  served: Served,
  sampler: Sampler,
  counts: Metrics,
  *,
  timeout: float,
  token: str | None = None,
  hosts: Collection[str] | None = None,
) -> Starlette:
  """The server as an application of ASGI.

  Args:
    served: the model.
    sampler: of the model; it is started and stopped with the application.
    counts: of what happens.
    timeout: seconds that an answer may take.
    token: that requests must bear; None if they need none.
    hosts: that requests may name as their server; None for any.
  """
  card = {
    "id": served.name,
    "object": "model",
    "created": served.created,
    "owned_by": "r1jax",
    "max_model_len": served.max_length,
  }
  page = importlib.resources.files("r1jax.tools.serve") / "page" / "chat.html"
  text = page.read_text(encoding="utf-8")

  @contextlib.asynccontextmanager
  async def lifespan(app: Starlette):
    sampler.start()
    yield
    await sampler.stop()

  async def chat_page(request: Request) -> Response:
    return HTMLResponse(text, headers={"content-security-policy": PAGE_POLICY})

  async def health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})

  async def show_metrics(request: Request) -> Response:
    return Response(counts.text(), media_type=metrics.CONTENT_TYPE)

  async def models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [card]})

  async def model(request: Request) -> Response:
    task.check_name(request.path_params["name"], served)
    return JSONResponse(card)

  def answers(read: Reader) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
      asked: Task = await read_body(request, read, served)
      answer = Answer(asked, served, sampler, counts, timeout)
      return await answer.response(request)

    return endpoint

  async def tokenize(request: Request) -> Response:
    ids = await read_body(request, task.read_tokens, served)
    size = {"count": len(ids), "max_model_len": served.max_length}
    return JSONResponse(size | {"tokens": ids})

  async def detokenize(request: Request) -> Response:
    prompt = await read_body(request, task.read_text, served)
    return JSONResponse({"prompt": prompt})

  post = lambda path, endpoint: Route(path, endpoint, methods=["POST"])
  routes = [
    Route("/", chat_page),
    Route("/health", health),
    Route("/metrics", show_metrics),
    Route("/v1/models", models),
    Route("/v1/models/{name:path}", model),
    post("/v1/chat/completions", answers(task.read_chat)),
    post("/v1/completions", answers(task.read_completion)),
    post("/tokenize", tokenize),
    post("/detokenize", detokenize),
  ]
  guard = Middleware(
    Guard,
    metrics=counts,
    paths=[route.path for route in routes],
    token=token,
    hosts=hosts,
  )
  return Starlette(
    routes=routes,
    middleware=[guard],
    exception_handlers={HTTPException: refused},
    lifespan=lifespan,
  )


async def read_body(request: Request, read: Reader, served: Served) -> Any:
  """What `read` makes of the JSON in the body of a request.

  Raises ApiError for another type of content, for too many bytes, and for a
  client that takes too long to send them.
  """
  kind = request.headers.get("content-type", "").partition(";")[0].strip()
  # A form of another site's page could ask for anything else unseen.
  if kind.lower() != "application/json":
    raise ApiError("the content-type must be application/json", status=415)
  body = bytearray()
  try:
    async with asyncio.timeout(BODY_SECONDS):
      async for chunk in request.stream():
        body += chunk
        if len(body) > BODY:
          raise ApiError(f"the body is longer than {BODY} bytes", status=413)
  except TimeoutError as error:
    raise ApiError("the body came too slowly", status=408) from error
  # Long texts take their time to encode; other requests do not wait for it.
  return await asyncio.to_thread(lambda: read(parse(bytes(body)), served))
