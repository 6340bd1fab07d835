"""Products with custom gradients, against einsum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.ops import linear, swiglu

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(2, 5, 3, 8)).astype(np.float32)


def test_swiglu_is_down_of_silu_gate_times_up():
  x = NORMAL[0, :, 0]
  gate, up = RNG.normal(size=(2, 8, 6)).astype(np.float32)
  down = RNG.normal(size=(6, 8)).astype(np.float32)
  hidden = x @ gate / (1 + np.exp(-(x @ gate))) * (x @ up)
  got = swiglu(
    jnp.asarray(x),
    jnp.asarray(np.stack([gate, up], axis=1)),
    jnp.asarray(down),
  )
  np.testing.assert_allclose(got, hidden @ down, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("made", [(3,), (8,), (2, 7), (2, 3, 4)])
def test_linear_and_its_gradients_are_those_of_einsum(made):
  """For weights that are narrower and wider than x."""
  draw = lambda *shape: jnp.asarray(RNG.normal(size=shape), jnp.float32)
  x, weight, of_out = draw(2, 5, 8), draw(8, *made), draw(2, 5, *made)
  plain = lambda x, weight: jnp.einsum("BTD,D...->BT...", x, weight)
  (got, pull), (expected, plain_pull) = (
    jax.vjp(f, x, weight) for f in (linear, plain)
  )
  for a, b in zip(
    (got, *pull(of_out)), (expected, *plain_pull(of_out)), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_swiglu_is_that_of_its_equation():
  draw = lambda *shape: jnp.asarray(RNG.normal(size=shape), jnp.float32)
  for width, hidden in ((8, 6), (6, 8), (7, 7)):
    arguments = draw(2, 5, width), draw(width, 2, hidden), draw(hidden, width)
    of_out = draw(2, 5, width)

    def plain(x, gate_up, down):
      gate, up = x @ gate_up[:, 0], x @ gate_up[:, 1]
      return (gate / (1 + jnp.exp(-gate)) * up) @ down

    pulls = (jax.vjp(f, *arguments)[1](of_out) for f in (swiglu, plain))
    for a, b in zip(*pulls, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
