"""Losses never rely on shapes that happen to broadcast."""

import jax
import pytest


@pytest.fixture(autouse=True)
def no_rank_promotion():
  with jax.numpy_rank_promotion("raise"):
    yield


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
  """Nothing here needs speed."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)
