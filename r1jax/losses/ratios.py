"""Ratios: how much likelier tokens are under one policy than under another.

Two kinds are needed. RATIOS divide the policy by the old policy and multiply
the advantage. CORRECTIONS divide the old policy by the sampler, whose kernels
and precision may give slightly other probabilities.

The functions take the log-ratio of each token and a function `total`. At each
token, `total(values)` is the sum of the values over the token's completion.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from r1jax.losses.tables import choose, positive

LARGEST = 20.0  # Nats.


def safe_exp(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
  """e^x up to 20 nats, and its tangent at 20 above, so that it stays finite.

  A gradient norm squares the product of a ratio and a KL estimate, and (e^20)^4
  still fits in float32.
  """
  beyond = jnp.maximum(x - LARGEST, 0.0)
  return jnp.exp(jnp.minimum(x, LARGEST)) * (1.0 + beyond)


def completion_sums(
  completions: Int[Array, "*B"],
  num_completions: int,
  mask: Bool[Array, "*B"],
  values: Float[Array, "*B"],
) -> Float[Array, "N"]:
  """The sum of the masked `values` over the tokens of each of N completions.

  `completions` says which completion a token belongs to. It is ignored where
  the mask is False.
  """
  at = jnp.where(mask, completions, 0)
  sums = jnp.zeros(num_completions, values.dtype)
  return sums.at[at].add(jnp.where(mask, values, 0.0))


def completion_total(
  completions: Int[Array, "*B"],
  num_completions: int,
  mask: Bool[Array, "*B"],
  values: Float[Array, "*B"],
) -> Float[Array, "*B"]:
  """At each token, the sum of the masked `values` over its completion.

  The result is meaningful only where the mask is True.
  """
  sums = completion_sums(completions, num_completions, mask, values)
  return sums[jnp.where(mask, completions, 0)]


def token_ratio(
  log_ratio: Float[Array, "*B"], total: Callable
) -> Float[Array, "*B"]:
  """pi(o_t) / pi_old(o_t): GRPO (arXiv:2402.03300, eq. 3)."""
  del total
  return safe_exp(log_ratio)


def sequence_ratio(
  log_ratio: Float[Array, "*B"], total: Callable
) -> Float[Array, "*B"]:
  """(pi(o) / pi_old(o))^(1/|o|): GSPO (arXiv:2507.18071, eq. 7).

  The geometric mean of the token ratios of a completion, at each of its tokens.
  """
  length = jnp.maximum(total(jnp.ones_like(log_ratio)), 1.0)
  return safe_exp(total(log_ratio) / length)


RATIOS = {"token": token_ratio, "sequence": sequence_ratio}


def sequence_product(
  log_ratio: Float[Array, "*B"], total: Callable
) -> Float[Array, "*B"]:
  """prod_t rho_t: the product of the ratios of a completion, at each token."""
  return safe_exp(total(log_ratio))


LEVELS = {"token": token_ratio, "sequence": sequence_product}


def truncate(rho: Float[Array, "*B"], *, cap: float) -> Float[Array, "*B"]:
  """min(rho, cap): truncated importance sampling (arXiv:1802.01561).

  Raises ValueError for a cap of 0 or below.
  """
  positive("correction 'truncate'", cap=cap)
  return jnp.minimum(rho, cap)


def mask(
  rho: Float[Array, "*B"], *, low: float, high: float
) -> Float[Array, "*B"]:
  """rho if low <= rho <= high, else 0: masked importance sampling (IcePop).

  Masked tokens still count in the denominators of the loss.

  Raises ValueError unless 0 < low < high.
  """
  positive("correction 'mask'", low=low, high=high)
  if not low < high:
    raise ValueError(f"correction 'mask': low {low} is not below high {high}")
  return jnp.where((rho >= low) & (rho <= high), rho, 0.0)


CORRECTIONS = {"truncate": truncate, "mask": mask}


def correction_weights(
  log_ratio: Float[Array, "*B"],
  total: Callable,
  *,
  level: str = "",
  **settings,
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
  """The ratio rho = pi_old / pi_sampler, and the weight computed from it.

  Args:
    log_ratio: log rho of each token.
    total: the sum over the completion of each token.
    level: a key of LEVELS: "token", or "sequence" for the product over the
      completion.
    settings: "name", a key of CORRECTIONS, and the keyword arguments of that.

  Raises ValueError for a name or a keyword argument that does not exist.
  """
  ratio = choose("correction level", LEVELS, dict(name=level))
  rho = ratio(log_ratio, total)
  return rho, choose("correction", CORRECTIONS, settings)(rho)
