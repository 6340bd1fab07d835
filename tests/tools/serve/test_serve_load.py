"""Many clients at once, and requests that nobody meant."""

import concurrent.futures
import http.client
import json
import random
import resource
import socket
import time

import numpy as np
import pytest
import serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
JSON = st.recursive(
  st.none()
  | st.booleans()
  | st.integers(-(2**40), 2**40)
  | st.floats(allow_nan=False, allow_infinity=False)
  | st.text(max_size=8),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=4), inner, max_size=3)
  ),
  max_leaves=6,
)
NAMES = (
  *("model", "prompt", "messages", "n", "best_of", "max_tokens", "stop"),
  *("temperature", "top_p", "top_k", "seed", "logprobs", "top_logprobs"),
  *("echo", "stream", "stream_options", "stop_token_ids", "ignore_eos"),
  *("max_completion_tokens", "tools", "response_format", "logit_bias", "user"),
  *("add_special_tokens", "return_token_ids", "separate_reasoning", "suffix"),
)
VALID = {
  CHAT: dict(model="demo", messages=[dict(role="user", content="1 + 1 =")]),
  TEXT: dict(model="demo", prompt="1 + 1 ="),
  "/tokenize": dict(prompt="1 + 1 ="),
  "/detokenize": dict(tokens=[5, 6]),
}


def is_error(content):
  error = content.get("error", {})
  return error.keys() == {"message", "type", "param", "code"} and isinstance(
    error["message"], str
  )


def fuzz(server, examples):
  @settings(
    max_examples=examples,
    deadline=None,
    database=None,
    suppress_health_check=[*HealthCheck],
  )
  @given(
    st.sampled_from([*VALID]),
    st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4),
  )
  def attempt(path, changes):
    body = dict(VALID[path], max_tokens=2) | changes
    status, _, text = server.request("POST", path, body)
    if status == 200 and text.startswith(b"data: "):
      events = text.decode().strip().split("\n\n")
      assert events[-1] == "data: [DONE]"
      for event in events[:-1]:
        json.loads(event.removeprefix("data: "))
      return
    content = json.loads(text)
    assert status == 200 or 400 <= status < 500, (status, content, body)
    assert (status == 200) != is_error(content)

  attempt()
  assert server.idle()


@pytest.mark.slow
def test_no_request_is_an_error_of_the_server(server):
  fuzz(server, 200)


@pytest.mark.soak
def test_no_request_of_thousands_is_an_error_of_the_server(server):
  fuzz(server, 5_000)


def ask(server, number, expected):
  """One client: it asks, leaves, reads slowly, or sends what is no request.

  Returns what happened.
  """
  rng = random.Random(number)
  kind = rng.choice(("whole", "whole", "stream", "leave", "slow", "garbage"))
  prompt = rng.randrange(len(expected))
  body = dict(
    prompt=f"{prompt} + {prompt} =",
    max_tokens=24,
    seed=prompt,
    return_token_ids=True,
    stream=kind != "whole",
  )
  if kind == "garbage":
    with socket.create_connection(("127.0.0.1", server.port), 30) as raw:
      raw.sendall(rng.randbytes(rng.randrange(1, 400)))
      return kind
  connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
  try:
    connection.request("POST", TEXT, json.dumps(body), server.headers)
    if kind == "leave":
      time.sleep(rng.random() / 5)
      return kind
    response = connection.getresponse()
    if response.status == 429:
      return "refused"
    assert response.status == 200
    if kind == "slow":
      text = b""
      while piece := response.read(40):
        text += piece
        time.sleep(0.002)
    else:
      text = response.read()
  finally:
    connection.close()
  if kind == "whole":
    (choice,) = json.loads(text)["choices"]
    ids = choice["token_ids"]
  else:
    events = [
      json.loads(event.removeprefix("data: "))
      for event in text.decode().strip().split("\n\n")[:-1]
    ]
    ids = [i for e in events for c in e["choices"] for i in c["token_ids"]]
  assert ids == expected[prompt]
  return "answered"


def load(server, seconds):
  """64 clients for some seconds; the counts of what happened to them."""
  engine, encode = server.engine, server.model.tokenizer.encode
  params = engine.prepare(server.model.params)
  expected = []
  for i in range(6):
    rollout = engine(
      params, [[*encode(f"{i} + {i} =")]], 1, seed=i, round=0, max_tokens=24
    )
    length = int(np.asarray(rollout.lengths)[0, 0])
    expected.append(np.asarray(rollout.completions)[0, 0, :length].tolist())
  counts, end = {}, time.monotonic() + seconds
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

  def client(number):
    while time.monotonic() < end:
      kind = ask(server, number, expected)
      counts[kind] = counts.get(kind, 0) + 1
      number += 1_000

  with concurrent.futures.ThreadPoolExecutor(64) as pool:
    for each in [*pool.map(client, range(64))]:
      assert each is None
  assert server.idle()
  grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  assert grown < 300_000  # kB
  # It still answers.
  status, _ = server.post(TEXT, prompt="1", max_tokens=1)
  assert status == 200
  return counts


@pytest.mark.slow
def test_accepted_requests_are_answered_whatever_other_clients_do(model):
  with serving.running(model, queue=16) as server:
    counts = load(server, 20)
    assert counts["answered"] > 20 and counts["leave"] and counts["garbage"]


@pytest.mark.soak
def test_ten_minutes_of_clients_leave_nothing_behind(model):
  with serving.running(model, queue=16) as server:
    counts = load(server, 600)
    assert counts["answered"] > 500
