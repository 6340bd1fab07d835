"""A server on loopback, for the model of the demo."""

import contextlib
import http.client
import json
import socket
import threading
import time

from r1jax.data import templates

SLOTS, LENGTH = 4, 256


class Server:
  """A running server, and raw requests to it."""

  def __init__(self, port, sampler, served, engine, model):
    self.port, self.sampler, self.served = port, sampler, served
    self.engine, self.model = engine, model
    self.headers = {"content-type": "application/json"}

  @property
  def url(self):
    return f"http://127.0.0.1:{self.port}/v1"

  def request(self, method, path, body=None, headers=None, timeout=120):
    """(status, headers, body) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout)
    with contextlib.closing(connection):
      if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
      connection.request(method, path, body, headers or self.headers)
      response = connection.getresponse()
      return response.status, dict(response.headers), response.read()

  def post(self, path, **body):
    """The status and the JSON of a request."""
    status, _, text = self.request("POST", path, body)
    return status, json.loads(text)

  def idle(self, seconds=30):
    """Waits until nothing is sampled; returns whether that came."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
      if self.sampler.pending == 0 and self.sampler.busy == 0:
        return True
      time.sleep(0.05)
    return False


@contextlib.contextmanager
def running(model, engine=None, *, queue=64, timeout=120.0, **options):
  """A server of a model, on a free port of loopback."""
  import uvicorn

  from r1jax.tools.serve import command
  from r1jax.tools.serve.app import make_app
  from r1jax.tools.serve.metrics import Metrics
  from r1jax.tools.serve.sampler import Sampler
  from r1jax.tools.serve.task import Served

  engine = engine or command.make_server_engine(model, SLOTS, LENGTH)
  served = Served(
    name="demo",
    tokenizer=model.tokenizer,
    template=templates.find("r1_zero", model.tokenizer),
    max_length=LENGTH,
    capacity=SLOTS + queue,
  )
  sampler = Sampler(engine, engine.prepare(model.params), served.capacity)
  counts = Metrics(sampler, engine.num_slots)
  app = make_app(served, sampler, counts, timeout=timeout, **options)
  listener = socket.create_server(("127.0.0.1", 0))
  server = uvicorn.Server(
    uvicorn.Config(
      app, access_log=False, log_level="warning", timeout_graceful_shutdown=5
    )
  )
  thread = threading.Thread(
    target=server.run, kwargs=dict(sockets=[listener]), daemon=True
  )
  thread.start()
  while not server.started:
    time.sleep(0.01)
  try:
    port = listener.getsockname()[1]
    yield Server(port, sampler, served, engine, model)
  finally:
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()
