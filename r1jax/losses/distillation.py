"""Distillation of a teacher's distribution over tokens, in nats per token.

Each function returns one value per token, for a weighted sum as in `sft_loss`.
V is the vocabulary, which teacher and student share.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def forward_kl(
  logprobs: Float[Array, "*B V"], teacher_logprobs: Float[Array, "*B V"]
) -> Float[Array, "*B"]:
  """KL(teacher || student) = sum_v q_v (log q_v - log p_v).

  Its gradient is that of the cross-entropy to the teacher (arXiv:1503.02531,
  sec. 2, at temperature 1). Tokens to which the teacher gives probability 0 do
  not count.

  Args:
    logprobs: log p of the student.
    teacher_logprobs: log q of the teacher.
  """
  return _kl(teacher_logprobs, logprobs)


def reverse_kl(
  logprobs: Float[Array, "*B V"], teacher_logprobs: Float[Array, "*B V"]
) -> Float[Array, "*B"]:
  """KL(student || teacher) = sum_v p_v (log p_v - log q_v).

  On texts that the student sampled, it is the loss of on-policy distillation
  (arXiv:2306.13649, sec. 3; arXiv:2306.08543). The arguments are those of
  `forward_kl`.
  """
  return _kl(logprobs, teacher_logprobs)


def _kl(log_p, log_q):
  """sum_v p_v (log p_v - log q_v), where p_v > 0."""
  possible = log_p > -jnp.inf
  safe = lambda x: jnp.where(possible, x, 0.0)
  terms = jnp.exp(safe(log_p)) * (safe(log_p) - safe(log_q))
  return jnp.sum(jnp.where(possible, terms, 0.0), axis=-1)


def top_k_kl(
  logprobs: Float[Array, "*B k"], teacher_logprobs: Float[Array, "*B k"]
) -> Float[Array, "*B"]:
  """KL(teacher || student) between k tokens and the rest as one event.

      sum_{v in top k} q_v (log q_v - log p_v) + Q (log Q - log P),

  where Q and P are the probabilities of all other tokens. It is at most
  `forward_kl`, and equal to it if k is V. Because of the rest, the student
  cannot lower it by probability on tokens outside of the k.

  Args:
    logprobs: log p of the teacher's k likeliest tokens under the student.
    teacher_logprobs: log q of these tokens.
  """
  kl = _kl(teacher_logprobs, logprobs)
  rest, teacher_rest = map(_log_rest, (logprobs, teacher_logprobs))
  # Rounding leaves a rest of about 1e-7 where there is none: it counts nothing.
  counts = teacher_rest > jnp.log(4 * jnp.finfo(logprobs.dtype).eps)
  log_q = jnp.where(counts, teacher_rest, 0.0)
  log_p = jnp.where(counts, rest, 0.0)
  return kl + jnp.where(counts, jnp.exp(log_q) * (log_q - log_p), 0.0)


def _log_rest(logprobs: Float[Array, "*B k"]) -> Float[Array, "*B"]:
  """log(1 - sum p), at least the log of the smallest step below 1."""
  rest = -jnp.expm1(jax.nn.logsumexp(logprobs, axis=-1))
  return jnp.log(jnp.maximum(rest, jnp.finfo(logprobs.dtype).eps))


def on_policy_advantages(
  sampler_logprobs: Float[Array, "*B"], teacher_logprobs: Float[Array, "*B"]
) -> Float[Array, "*B"]:
  """log q - log p of each sampled token: the advantage of following a teacher.

  Its mean over tokens sampled from the student is -KL(student || teacher) per
  token, and a policy gradient with these advantages follows the gradient of
  that KL, with the discount factor 0 (arXiv:2306.13649; MiniLLM,
  arXiv:2306.08543, has the sum over later tokens).

  Args:
    sampler_logprobs: log p of the sampled tokens under the student.
    teacher_logprobs: log q of the same tokens under the teacher.
  """
  return jax.lax.stop_gradient(teacher_logprobs - sampler_logprobs)
