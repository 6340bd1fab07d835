"""Serve a model to OpenAI's clients, and to a browser.

    r1jax serve --model=r1jax/base

The directory holds a model in Hugging Face layout and its tokenizer, or is the
workdir of a run. The server offers /v1/chat/completions, /v1/completions,
/v1/models, /tokenize, /detokenize, /health, /metrics (Prometheus), and a page
to chat with at /. Ctrl-C or SIGTERM stops it once the answers under way have
been sent; a second one stops it at once.

It listens to this machine alone, unless --host says otherwise. If R1JAX_API_KEY
is set in the environment, requests must bear it as a token.
"""

import importlib.util
import ipaddress
import os
import pathlib
import signal
import socket
import sys

from absl import flags

from r1jax.data import templates

API_KEY = "R1JAX_API_KEY"
DECODE_STEPS = 8  # Tokens between two looks of the host.
GRACE_SECONDS = 30  # For answers under way when the server is stopped.
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


def main() -> None:
  """Serves until a signal stops it."""
  options = flags.FLAGS
  if options.model is None:
    raise ValueError("--model is not set; set it to the directory of a model")
  if missing := missing_packages():
    raise ValueError(
      f"a server needs {', '.join(missing)}, not installed here; run: "
      'pip install "r1jax[serve]"'
    )
  token = os.environ.get(API_KEY) or None
  listener, is_local = listen(options.host, options.port)
  if not is_local and token is None:
    print(
      f"warning: anybody who reaches {options.host} may use this server; set "
      f"{API_KEY} to a token that they need",
      file=sys.stderr,
    )
  with listener:
    serve(options, listener, token, is_local)


def serve(
  options: flags.FlagValues,
  listener: socket.socket,
  token: str | None,
  is_local: bool,
) -> None:
  """Loads the model, and answers what comes in through `listener`."""
  import uvicorn  # Imported late: it is an extra, and JAX takes a second.

  from r1jax.tools import model as models
  from r1jax.tools.serve.app import make_app
  from r1jax.tools.serve.metrics import Metrics
  from r1jax.tools.serve.sampler import Sampler
  from r1jax.tools.serve.task import Served

  model = models.load(options.model)
  capacity = options.slots + options.queue
  served = Served(
    name=options.name or pathlib.Path(options.model).resolve().name,
    tokenizer=model.tokenizer,
    template=templates.find(
      options.template or model.template, model.tokenizer
    ),
    max_length=max_length(options.max_length, model.config.max_length),
    capacity=capacity,
  )
  engine = make_server_engine(model, options.slots, served.max_length)
  sampler = Sampler(engine, engine.prepare(model.params), capacity)
  sampler.warm_up()
  app = make_app(
    served,
    sampler,
    Metrics(sampler, engine.num_slots),
    timeout=options.timeout,
    token=token,
    # Pages of other sites cannot know the token.
    hosts=(*LOCAL_NAMES, options.host) if is_local and not token else None,
  )
  server = uvicorn.Server(
    uvicorn.Config(
      app,
      access_log=False,
      log_level="warning",
      server_header=False,
      timeout_graceful_shutdown=GRACE_SECONDS,
      ws="none",
    )
  )
  host, port = listener.getsockname()[:2]
  host = f"[{host}]" if ":" in host else host
  print(
    f"{served.name} is at http://{host}:{port} for a browser, and at "
    f"http://{host}:{port}/v1 for clients; Ctrl-C stops it",
    file=sys.stderr,
    flush=True,
  )
  # Once it has stopped, uvicorn raises the signal again, which is no error.
  for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, lambda *_: None)
  server.run(sockets=[listener])


def make_server_engine(model, slots: int, longest: int):
  """An engine for prompts and completions of `longest` tokens together.

  Args:
    model: of `r1jax.tools.model`.
    slots: completions under way at once, rounded up to what the devices split.
    longest: tokens.
  """
  from r1jax.parallel.mesh import make_mesh, row_shards
  from r1jax.rollouts.engine import make_engine

  mesh = make_mesh()
  shards = row_shards(mesh)
  return make_engine(
    model.transformer,
    model.tokenizer,
    mesh,
    (),
    num_slots=-(-slots // shards) * shards,
    decode_steps=DECODE_STEPS,
    prompt_tokens=longest - 1,
    max_tokens=longest,
    temperature=1.0,
  )


def missing_packages() -> list[str]:
  """The packages of the extra `serve` that are not installed."""
  names = ("prometheus_client", "starlette", "uvicorn")
  return [name for name in names if importlib.util.find_spec(name) is None]


def max_length(wanted: int | None, longest: int) -> int:
  """Tokens of a prompt and its completion; `longest` is the model's limit."""
  if wanted is not None and not 1 < wanted <= longest:
    raise ValueError(
      f"--max_length={wanted} is not within 2 and the model's {longest}"
    )
  return wanted or longest


def listen(host: str, port: int) -> tuple[socket.socket, bool]:
  """A socket that listens there, and whether only this machine reaches it.

  Raises OSError if it cannot.
  """
  try:
    family, kind, _, _, address = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
  except OSError as error:
    raise OSError(f"cannot listen at {host}:{port}: {error}") from error
  return listener, ipaddress.ip_address(address[0]).is_loopback


def define_flags() -> None:
  """Defines the flags that `main` reads."""
  flags.DEFINE_string("model", None, "Directory of a model and its tokenizer.")
  flags.DEFINE_string("host", "127.0.0.1", "The address to listen at.")
  flags.DEFINE_integer(
    "port", 8000, "Its port; 0 takes a free one.", lower_bound=0
  )
  flags.DEFINE_string(
    "name", None, "The model's name for clients; by default its directory's."
  )
  flags.DEFINE_string(
    "template",
    None,
    "The chat template: 'chat' for that of the model, one of "
    f"{', '.join(templates.TEMPLATES)}, or a text that contains {{question}}; "
    "by default chat, or r1_zero if the model has no chat template.",
  )
  flags.DEFINE_integer(
    "max_length",
    None,
    "The most tokens of a prompt and its completion together; by default as "
    "many as the model was made for.",
  )
  flags.DEFINE_integer(
    "slots", 16, "Completions that are sampled at once.", lower_bound=1
  )
  flags.DEFINE_integer(
    "queue",
    256,
    "Completions that may wait for a slot; requests beyond get status 429.",
    lower_bound=0,
  )
  flags.DEFINE_float(
    "timeout", 600, "Seconds that an answer may take.", lower_bound=1
  )
