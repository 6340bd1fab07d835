"""The policy on packed rows, scoring, and the loss of a GRPO update."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from r1jax.losses.grpo import grpo_loss
from r1jax.losses.sft import sft_loss
from r1jax.models import transformer
from r1jax.models.config import ModelConfig
from r1jax.models.rows import mtp_targets
from r1jax.models.transformer import Transformer
from r1jax.models.weights import to_compute_dtype
from r1jax.parallel import offload, sharding
from r1jax.training.batch import BATCH_AXES
from r1jax.training.update import init_state
from r1jax.types import Batch, Packed, Params, RLState


class PolicyOutput(NamedTuple):
  """Outputs of the policy at each slot of packed rows."""

  logprobs: Float[Array, "B T"]  # log p(target), in nats.
  entropy: Float[Array, "B T"]  # In nats.
  expert_load: Float[Array, "L E"]  # Tokens that each expert processed.
  hidden: Float[Array, "B T D"]  # Final hidden states, for the MTP blocks.
  # Share of the k experts, mean over layers, that the router would not choose.
  router_mismatch: Float[Array, "B T"]


def policy_forward(
  model: Transformer,
  vocab_size: int,
  temperature: float,
  params: Params,
  packed: Packed,
  experts: Integer[Array, "L k B T"] | None = None,
) -> PolicyOutput:
  """The outputs of the policy at `temperature` for packed rows.

  Probabilities are over the first `vocab_size` ids. `experts` replays the
  experts that the sampler used, but in unused slots; None lets the router
  choose.
  """
  if experts is not None:
    experts = jnp.where(packed.positions >= 0, experts.astype(jnp.int16), -1)
    experts = jnp.moveaxis(experts, 1, -1)
  forward = transformer.forward(model, params, packed, experts=experts)
  logprobs, entropy = transformer.logprobs(
    params,
    forward.hidden,
    packed.targets,
    temperature=temperature,
    vocab_size=vocab_size,
    counted=packed.origin >= 0,
  )
  mismatch = forward.router_mismatch
  return PolicyOutput(
    logprobs=logprobs,
    entropy=entropy,
    expert_load=forward.expert_load,
    hidden=forward.hidden,
    router_mismatch=mismatch.sum(0) / max(len(mismatch), 1),
  )


def make_score(policy: Callable[..., PolicyOutput]) -> Callable:
  """A jitted function score(params, batch) -> log p(target) [B, T], in nats.

  `policy` is `policy_forward` with its first three arguments bound.
  """

  @jax.jit
  def score(params: Params, batch: Batch) -> Float[Array, "B T"]:
    logprobs = policy(params, batch.packed, batch.experts).logprobs
    return sharding.shard_constraint(logprobs, *BATCH_AXES)

  return score


def add_logprobs(
  score: Callable,
  updates: Sequence[Sequence[Batch]],
  state: RLState,
  *,
  old: str,
) -> list[list[Batch]]:
  """The microbatches of updates, with the log-probabilities that they lack.

  Those are of the old policy if `old` is "trainer" (the sampler's are there
  already), and of the reference policy if there is one.

  Args:
    score: from `make_score`.
    updates: the microbatches of each update.
    state: before the updates.
    old: where the old log-probabilities come from: "sampler" or "trainer".
  """
  scorers = {}
  if old == "trainer":
    scorers["old_logprobs"] = state.train.params
  if state.reference is not None:  # Copied once for all microbatches.
    scorers["reference_logprobs"] = offload.to_device(state.reference)

  def add(batch):
    found = {name: score(params, batch) for name, params in scorers.items()}
    return batch.replace(**jax.block_until_ready(found))

  return [[*map(add, batches)] for batches in updates]


def policy_loss(
  policy: Callable[..., PolicyOutput],
  mtp: Callable | None,
  num_completions: int,
  params: Params,
  batch: Batch,
  *,
  ratio,
  clip,
  kl,
  kl_coefficient,
  entropy_coefficient,
  correction,
) -> tuple[Float[Array, ""], dict[str, Array]]:
  """The loss of one microbatch, GRPO plus MTP, and its metrics.

  Args:
    policy: `policy_forward` with its first three arguments bound.
    mtp: `mtp_loss` with its first two arguments bound; None adds no MTP loss.
    num_completions: number N of completions of the round.
    params: of the policy.
    batch: one microbatch.
    ratio: see `grpo_loss` for this and the remaining arguments.
  """
  output = policy(params, batch.packed, batch.experts)
  loss, metrics = grpo_loss(
    output.logprobs,
    batch.old_logprobs,
    batch.reference_logprobs,
    batch.advantages,
    batch.weights,
    batch.num_targets,
    completions=batch.completions,
    num_completions=num_completions,
    sampler_logprobs=batch.sampler_logprobs,
    entropy=output.entropy,
    ratio=ratio,
    clip=clip,
    kl=kl,
    kl_coefficient=kl_coefficient,
    entropy_coefficient=entropy_coefficient,
    correction=correction,
  )
  trained = batch.weights > 0
  mean = lambda x: (
    jnp.sum(jnp.where(trained, x, 0.0)) / jnp.maximum(batch.num_targets, 1)
  )
  logprob_diff = jnp.abs(output.logprobs - batch.sampler_logprobs)
  probs, sampler_probs = map(jnp.exp, (output.logprobs, batch.sampler_logprobs))
  metrics |= {
    "router/load": output.expert_load,
    "sampling/logp_diff_mean": mean(logprob_diff),
    "sampling/logp_diff_max": jnp.max(jnp.where(trained, logprob_diff, 0.0)),
    "sampling/prob_diff_mean": mean(jnp.abs(probs - sampler_probs)),
  }
  if batch.experts is not None:
    metrics["router/replay_mismatch"] = mean(output.router_mismatch)
  if mtp is not None:
    total = mtp(params, batch.packed, output.hidden)
    metrics["loss/mtp"] = total / jnp.maximum(batch.num_targets, 1)
    loss += metrics["loss/mtp"]
  return loss, metrics


def mtp_loss(
  model: Transformer,
  vocab_size: int,
  params: Params,
  packed: Packed,
  hidden: Float[Array, "B T D"],
) -> Float[Array, ""]:
  """The summed negative log-likelihood (nats) of tokens under the MTP blocks.

  It is the mean over depths (arXiv:2412.19437, eq. 24 and 25). Gradients reach
  the MTP blocks only; the trunk and the embeddings are constants.
  """
  constant = jax.lax.stop_gradient(params) | {"mtp": params["mtp"]}
  states = transformer.mtp_hidden(
    model, constant, jax.lax.stop_gradient(hidden), packed
  )
  losses = []
  for depth, state in enumerate(states, 1):
    targets, counted = mtp_targets(packed, depth)
    logprobs, _ = transformer.logprobs(
      constant,
      state,
      targets,
      vocab_size=vocab_size,
      counted=counted,
    )
    losses.append(sft_loss(logprobs, counted.astype(jnp.float32)))
  return sum(losses) / len(losses)


def init_rl_state(
  config: ModelConfig, optimizer, use_reference: bool, params: Params
) -> RLState:
  """The initial state of a GRPO run; without `use_reference`, no reference."""
  return RLState(
    train=init_state(params, optimizer),
    reference=reference_copy(config, params) if use_reference else None,
    reference_step=jnp.zeros((), jnp.int32),
  )


def refresh_reference(
  config: ModelConfig, offloaded, state: RLState
) -> RLState:
  """The state with a copy of the current policy as the reference.

  `offloaded` names the parts that are in host memory; see `offload`.
  """
  state = state.replace(
    reference=reference_copy(config, state.train.params),
    reference_step=jnp.copy(state.train.step),
  )
  return offload.to_host(state, offloaded)


def reference_copy(config: ModelConfig, params: Params) -> Params:
  """A copy of the policy in the sampler's dtypes that shares no buffer with it.

  In these dtypes, a fresh reference has a KL of exactly 0.
  """
  return jax.tree.map(
    lambda x: jnp.array(x, copy=True), to_compute_dtype(params, config)
  )
