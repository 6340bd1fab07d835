"""A server on loopback that replies to requests as a test tells it to."""

import contextlib
import http.server
import json
import os
import socket
import ssl
import struct
import threading
import time


class JudgeServer(http.server.ThreadingHTTPServer):
  """Replies to each request with the next act of its script, then by rule.

  An act takes the request's handler. `rule` takes what was asked, and gives the
  text of the reply.
  """

  daemon_threads = False  # Closing waits for all threads.
  request_queue_size = 128  # As many as may knock at once.

  def __init__(self):
    super().__init__(("127.0.0.1", 0), Handler)
    self.base_url = f"http://127.0.0.1:{self.server_port}/v1"
    self.script = []
    self.rule = lambda asked: "7"
    self.asked, self.headers, self.times = [], [], []
    self.busy = self.busiest = 0
    self.released = threading.Event()
    self.lock = threading.Lock()

  def handle_error(self, request, client_address):
    """Clients that hang up are no news."""


class Handler(http.server.BaseHTTPRequestHandler):
  def do_POST(self):
    asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
    server = self.server
    with server.lock:
      server.asked.append(asked)
      server.headers.append(self.headers)
      server.times.append(time.monotonic())
      server.busy += 1
      server.busiest = max(server.busiest, server.busy)
      act = server.script.pop(0) if server.script else None
    try:
      (act or says(server.rule(asked)))(self)
    finally:
      with server.lock:
        server.busy -= 1

  def log_message(self, *_):
    pass


def sends(body, *, status=200, kind="application/json", **headers):
  """An act: this body, as it is."""

  def act(handler):
    data = body.encode()
    handler.send_response(status)
    handler.send_header("content-type", kind)
    handler.send_header("content-length", str(len(data)))
    for name, value in headers.items():
      handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(data)

  return act


def says(text):
  """An act: a completion with this text."""
  message = dict(role="assistant", content=text)
  choice = dict(index=0, message=message, finish_reason="stop")
  body = dict(
    id="1", object="chat.completion", created=0, model="m", choices=[choice]
  )
  return sends(json.dumps(body))


def fails(status, **headers):
  """An act: an error."""
  body = json.dumps(dict(error=dict(message="not now", type="test")))
  return sends(body, status=status, **headers)


def hangs(handler):
  """An act: nothing, until the test is over."""
  handler.server.released.wait(60)


def drips(handler):
  """An act: a byte now and then, always in time for the next one's timeout."""
  handler.send_response(200)
  handler.send_header("content-type", "application/json")
  handler.send_header("content-length", "100000")
  handler.end_headers()
  with contextlib.suppress(OSError):
    while not handler.server.released.wait(0.05):
      handler.wfile.write(b" ")


def resets(handler):
  """An act: the connection is cut."""
  linger = struct.pack("ii", 1, 0)
  handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
  os.close(handler.connection.detach())


def cuts(handler):
  """An act: a reply that ends in the middle."""
  handler.send_response(200)
  handler.send_header("content-type", "application/json")
  handler.send_header("content-length", "100000")
  handler.end_headers()
  handler.wfile.write(b'{"id": "1", "object": "chat.completion", "choices": [')
  handler.close_connection = True


@contextlib.contextmanager
def serving(monkeypatch):
  """A server on loopback; afterwards it is gone, and all its threads."""
  # Loopback needs no certificates, which take a tenth of a second to load.
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
  monkeypatch.setattr(ssl, "create_default_context", lambda **_: context)
  monkeypatch.setenv("NO_PROXY", "*")
  monkeypatch.delenv("OPENAI_API_KEY", raising=False)
  server = JudgeServer()
  loop = threading.Thread(target=server.serve_forever, args=(0.02,))
  loop.start()
  try:
    yield server
  finally:
    server.released.set()
    server.shutdown()
    loop.join()
    server.server_close()
