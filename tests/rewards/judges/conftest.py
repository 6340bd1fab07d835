"""Fixtures of judges that a server on loopback plays."""

import types

import pytest
from judge_server import drips, fails, hangs, resets, says, sends, serving

from r1jax.rewards.judges import endpoint
from r1jax.rewards.judges.endpoint import Endpoint


@pytest.fixture
def acts():
  """What a server can do: `acts.says("7")`, `acts.fails(500)`, `acts.hangs`."""
  return types.SimpleNamespace(
    sends=sends, says=says, fails=fails, hangs=hangs, drips=drips, resets=resets
  )


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  """Retries come soon."""
  monkeypatch.setattr(endpoint, "BACKOFF", 0.01)


@pytest.fixture
def judge_server(monkeypatch):
  """A server on loopback; afterwards it is gone, and all its threads."""
  with serving(monkeypatch) as server:
    yield server


@pytest.fixture
def place(judge_server):
  """The endpoint of the server."""
  return Endpoint(judge_server.base_url, "m", deadline=10.0, attempts=3)
