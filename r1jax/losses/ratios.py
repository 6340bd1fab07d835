"""How much likelier a completion is under one policy than under another.

All take log-ratios of single tokens and a function `total`, which gives at each
token the sum of some values over the tokens of its completion.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from r1jax.losses.tables import choose, positive

LARGEST = 20.0  # Nats.


def exp(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
  """e^x, and above 20 nats the line that continues it.

  The fourth power of e^20 still fits in float32: the product of a ratio and a
  KL estimate may be squared in a gradient norm. Above that, value and gradient
  stay finite and keep their direction.
  """
  beyond = jnp.maximum(x - LARGEST, 0.0)
  return jnp.exp(jnp.minimum(x, LARGEST)) * (1.0 + beyond)


def completion_sums(
  completions: Int[Array, "*B"],
  num_completions: int,
  mask: Bool[Array, "*B"],
  values: Float[Array, "*B"],
) -> Float[Array, "N"]:
  """The sum of `values` over each completion's tokens in the mask.

  Tokens outside of the mask may name any completion.
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
  """At each token, the sum of `values` over its completion's tokens.

  Only tokens in the mask are added up, and only there the result has a meaning.
  """
  sums = completion_sums(completions, num_completions, mask, values)
  return sums[jnp.where(mask, completions, 0)]


# What the surrogate is multiplied by.


def token_ratio(
  log_ratio: Float[Array, "*B"], total: Callable
) -> Float[Array, "*B"]:
  """pi(o_t) / pi_old(o_t): GRPO (arXiv:2402.03300, eq. 3)."""
  del total
  return exp(log_ratio)


def sequence_ratio(
  log_ratio: Float[Array, "*B"], total: Callable
) -> Float[Array, "*B"]:
  """(pi(o) / pi_old(o))^(1/|o|): GSPO (arXiv:2507.18071, eq. 7).

  The geometric mean over the completion's tokens, at each of them.
  """
  length = jnp.maximum(total(jnp.ones_like(log_ratio)), 1.0)
  return exp(total(log_ratio) / length)


RATIOS = {"token": token_ratio, "sequence": sequence_ratio}


# What corrects for a sampler whose probabilities are not the trainer's.


def sequence_product(
  log_ratio: Float[Array, "*B"], total: Callable
) -> Float[Array, "*B"]:
  """prod_t rho_t over the completion's tokens, at each of them."""
  return exp(total(log_ratio))


LEVELS = {"token": token_ratio, "sequence": sequence_product}


def truncate(rho: Float[Array, "*B"], *, cap: float) -> Float[Array, "*B"]:
  """min(rho, cap): truncated importance sampling (arXiv:1802.01561)."""
  positive("correction 'truncate'", cap=cap)
  return jnp.minimum(rho, cap)


def mask(
  rho: Float[Array, "*B"], *, low: float, high: float
) -> Float[Array, "*B"]:
  """rho if low <= rho <= high, else 0: masked importance sampling (IcePop).

  What is masked stays in the loss's denominators.
  """
  positive("correction 'mask'", low=low, high=high)
  if not low < high:
    raise ValueError(f"correction 'mask': low {low} is not below high {high}")
  return jnp.where((rho >= low) & (rho <= high), rho, 0.0)


CORRECTIONS = {"truncate": truncate, "mask": mask}


def correct(
  log_ratio: Float[Array, "*B"],
  total: Callable,
  *,
  level: str = "",
  **settings,
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
  """rho = pi_old / pi_sampler, and the weight that a correction makes of it.

  Args:
    log_ratio: of the old policy to the sampler, token by token.
    total: sums over completions.
    level: "token", or "sequence" for the product over the completion.
    settings: the name of one of CORRECTIONS and its keyword arguments.
  """
  ratio = choose("correction level", LEVELS, dict(name=level))
  rho = ratio(log_ratio, total)
  return rho, choose("correction", CORRECTIONS, settings)(rho)
