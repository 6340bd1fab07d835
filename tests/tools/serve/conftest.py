"""A server for the model of the demo."""

import pathlib

import pytest
import serving

BASE = pathlib.Path(__file__).parents[3] / "r1jax" / "base"


@pytest.fixture(scope="session")
def model():
  pytest.importorskip("uvicorn")
  from r1jax.tools import model as models

  return models.load(str(BASE), cpu_devices=1)


@pytest.fixture(scope="module")
def server(model):
  with serving.running(model) as server:
    yield server


@pytest.fixture
def client(server):
  openai = pytest.importorskip("openai")
  return openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
