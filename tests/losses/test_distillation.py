"""Distillation: each loss against its equation in NumPy, and what it is for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.losses import distillation

RNG = np.random.default_rng(0)
V = 11


def log_softmax(logits):
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


STUDENT = log_softmax(RNG.normal(size=(3, 5, V)))
TEACHER = log_softmax(2 * RNG.normal(size=(3, 5, V)))
as_float32 = lambda x: jnp.asarray(x, jnp.float32)


def kl(log_p, log_q):
  """sum_v p_v (log p_v - log q_v) of every token, by loops."""
  out = np.zeros(log_p.shape[:-1])
  for index in np.ndindex(out.shape):
    for p, q in zip(log_p[index], log_q[index]):
      out[index] += 0 if p == -np.inf else np.exp(p) * (p - q)
  return out


def top(k):
  """The teacher's k likeliest logprobs, and the student's of these tokens."""
  ids = np.argsort(-TEACHER, axis=-1)[..., :k]
  take = lambda x: np.take_along_axis(x, ids, axis=-1)
  return take(STUDENT), take(TEACHER)


def test_forward_and_reverse_kl_are_their_sums():
  for function, expected in (
    (distillation.forward_kl, kl(TEACHER, STUDENT)),
    (distillation.reverse_kl, kl(STUDENT, TEACHER)),
  ):
    found = function(as_float32(STUDENT), as_float32(TEACHER))
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    zero = function(as_float32(TEACHER), as_float32(TEACHER))
    np.testing.assert_array_equal(zero, 0.0)


@pytest.mark.parametrize("k", [1, 3, V - 1])
def test_top_k_kl_is_that_of_k_tokens_and_the_rest(k):
  student, teacher = top(k)
  events = lambda x: np.concatenate(
    [x, np.log(1 - np.exp(x).sum(-1, keepdims=True))], axis=-1
  )
  found = distillation.top_k_kl(as_float32(student), as_float32(teacher))
  expected = kl(events(teacher), events(student))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
  whole = kl(TEACHER, STUDENT)
  assert (found <= whole + 1e-5).all() and (found > 0).all()


def test_top_k_kl_of_the_whole_vocabulary_is_the_kl_and_so_is_its_gradient():
  student, teacher = map(as_float32, top(V))

  def loss(function, logits):
    return function(jax.nn.log_softmax(logits), teacher).sum()

  whole, gradient = jax.value_and_grad(
    lambda x: loss(distillation.forward_kl, x)
  )(student)
  found, same = jax.value_and_grad(lambda x: loss(distillation.top_k_kl, x))(
    student
  )
  assert found == pytest.approx(float(whole), rel=1e-5)
  np.testing.assert_allclose(same, gradient, atol=1e-5)
  # The gradient in the logits is that of cross-entropy: p - q.
  np.testing.assert_allclose(
    gradient, jnp.exp(student) - jnp.exp(teacher), atol=1e-5
  )


def test_tokens_that_the_teacher_cannot_write_do_not_count():
  teacher = TEACHER.copy()
  teacher[..., 4:] = -np.inf
  teacher = log_softmax(teacher)
  value, gradient = jax.value_and_grad(
    lambda x: distillation.forward_kl(x, as_float32(teacher)).sum()
  )(as_float32(STUDENT))
  assert value == pytest.approx(kl(teacher, STUDENT).sum(), rel=1e-5)
  assert np.isfinite(gradient).all() and (gradient[..., 4:] == 0).all()


@pytest.mark.parametrize("rest", [0.0, 1e-12, 1e-3])
def test_top_k_kl_is_finite_where_one_side_has_no_rest(rest):
  certain = np.log(np.array([[1 - rest, rest or 1e-30]]))
  other = np.log(np.array([[0.5, 0.2]]))
  for student, teacher in ((certain, other), (other, certain)):
    value, gradient = jax.value_and_grad(
      lambda x, y: distillation.top_k_kl(x, y).sum()
    )(as_float32(student), as_float32(teacher))
    assert np.isfinite(value) and value > 0
    assert np.isfinite(gradient).all()


def test_the_mean_advantage_of_sampled_tokens_is_the_negative_reverse_kl():
  """And a policy gradient with them is the gradient of that KL."""
  student, teacher = as_float32(STUDENT[0, 0]), as_float32(TEACHER[0, 0])
  values = distillation.on_policy_advantages(student, teacher)
  np.testing.assert_allclose(values, TEACHER[0, 0] - STUDENT[0, 0], rtol=1e-5)
  expected = -kl(STUDENT[:1, :1], TEACHER[:1, :1]).item()
  assert jnp.sum(jnp.exp(student) * values) == pytest.approx(expected, rel=1e-5)

  def policy(logits):  # The expectation over all tokens, not over samples.
    logprobs = jax.nn.log_softmax(logits)
    weighted = distillation.on_policy_advantages(logprobs, teacher)
    ratio = jnp.exp(logprobs - jax.lax.stop_gradient(logprobs))
    return -jnp.sum(jnp.exp(student) * ratio * weighted)

  reverse = lambda x: distillation.reverse_kl(jax.nn.log_softmax(x), teacher)
  np.testing.assert_allclose(
    jax.grad(policy)(student), jax.grad(reverse)(student), atol=1e-6
  )
