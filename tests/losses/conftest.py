"""Losses never rely on shapes that happen to broadcast."""

import jax
import pytest


@pytest.fixture(autouse=True)
def no_rank_promotion(quick_to_compile):
  with jax.numpy_rank_promotion("raise"):
    yield
