"""What a GRPO update descends, as a function of parameters and packed rows."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from r1jax import offload, sharding
from r1jax.losses.grpo import grpo_loss
from r1jax.losses.sft import sft_loss
from r1jax.models import ops, transformer
from r1jax.models.config import ModelConfig
from r1jax.models.transformer import Transformer
from r1jax.models.weights import to_compute_dtype
from r1jax.training.update import init_state
from r1jax.types import Packed, Params, RLState


class Policy(NamedTuple):
  """What the tempered policy says of packed rows, where there is an origin."""

  logprobs: Float[Array, "B T"]  # log p(target).
  entropy: Float[Array, "B T"]
  expert_load: Float[Array, "L E"]
  hidden: Float[Array, "B T D"]
  differ: Float[
    Array, "B T"
  ]  # Share of layers that would choose other experts.
  dropped: Float[Array, ""] | None  # Choices without room; None if none can be.


def ask(
  model: Transformer,
  vocab_size: int,
  temperature: float,
  params: Params,
  packed: Packed,
  experts: Int[Array, "B T L k"] | None = None,
) -> Policy:
  """Asks the policy at `temperature`, over the ids that exist.

  Tokens go to the `experts` given; None, or -1, lets the router choose.
  """
  if experts is not None:
    experts = jnp.moveaxis(experts, 2, 0)
  forward = transformer.forward(model, params, packed, experts=experts)
  logprobs, entropy = ops.linear_logprobs(
    forward.hidden,
    transformer.unembed(params),
    packed.targets,
    temperature=temperature,
    vocab_size=vocab_size,
    counted=packed.origin >= 0,
  )
  return Policy(
    logprobs=logprobs,
    entropy=entropy,
    expert_load=forward.expert_load,
    hidden=forward.hidden,
    differ=forward.differ.sum(0) / max(len(forward.differ), 1),
    dropped=forward.dropped if model.config.moe_capacity else None,
  )


def make_score(policy):
  """`score(params, rows, count)`: log p(target) [B, M, T] of microbatches.

  The rows are packed, and who works on their tokens (None for the router).
  """

  @jax.jit
  def score(params, rows: tuple[Packed, Array | None], count):
    params = offload.fetched(params)

    def one(i, out):
      packed, experts = jax.tree.map(lambda x: jnp.take(x, i, axis=1), rows)
      made = policy(params, packed, experts).logprobs
      return sharding.constrain(out.at[:, i].set(made), *names)

    names = ("rows", None, "tokens")
    empty = sharding.constrain(jnp.zeros(rows[0].tokens.shape), *names)
    with jax.named_scope("microbatches"):
      return jax.lax.fori_loop(0, count, one, empty)

  return score


def objective(
  policy,
  further,
  num_completions: int,
  params: Params,
  rows: tuple[Packed, dict[str, Any]],
  num_tokens,
  *,
  ratio,
  clip,
  kl,
  kl_coefficient,
  entropy_coefficient,
  correction,
):
  """`grpo_loss` on one microbatch, and the MTP blocks' own loss.

  Args:
    policy: `ask`, but for params and rows.
    further: `further_loss`, likewise; None leaves the MTP blocks alone.
    num_completions: of the round.
    params: of the model.
    rows: packed, and what `experience.token_arrays` says of their slots.
    num_tokens: that count in the whole update.
    ratio: and the rest: see `grpo_loss`.
  """
  packed, told = rows
  said = policy(params, packed, told["experts"])
  weights, sampler = told["weights"], told["sampler_logprobs"]
  loss, numbers = grpo_loss(
    said.logprobs,
    told["old_logprobs"],
    told["reference_logprobs"],
    told["advantages"],
    weights,
    completions=told["completion"],
    num_completions=num_completions,
    sampler_logprobs=sampler,
    entropy=said.entropy,
    num_tokens=num_tokens,
    ratio=ratio,
    clip=clip,
    kl=kl,
    kl_coefficient=kl_coefficient,
    entropy_coefficient=entropy_coefficient,
    correction=correction,
  )
  apart = jnp.where(weights > 0, jnp.abs(said.logprobs - sampler), 0.0)
  ours, theirs = jnp.exp(said.logprobs), jnp.exp(sampler)
  of_chance = jnp.where(weights > 0, jnp.abs(ours - theirs), 0.0)
  numbers |= {
    "router/load": said.expert_load,
    "sampling/logp_diff_mean": jnp.sum(apart) / num_tokens,
    "sampling/logp_diff_max": jnp.max(apart),
    "sampling/prob_diff_mean": jnp.sum(of_chance) / num_tokens,
  }
  if said.dropped is not None:
    numbers["router/dropped"] = said.dropped
  if told["experts"] is not None:
    differ = jnp.sum(jnp.where(weights > 0, said.differ, 0.0))
    numbers["router/replay_mismatch"] = differ / num_tokens
  if further is not None:
    numbers["loss/mtp"] = further(params, packed, said.hidden) / num_tokens
    loss += numbers["loss/mtp"]
  return loss, numbers


def further_loss(
  model: Transformer,
  vocab_size: int,
  params: Params,
  packed: Packed,
  hidden: Float[Array, "B T D"],
) -> Float[Array, ""]:
  """Negative log-likelihood of sampled tokens by the MTP blocks, summed.

  The mean over depths (arXiv:2412.19437, eq. 24 and 25). Only the blocks learn
  from it: to them the trunk and the embeddings are constants.
  """
  constant = jax.lax.stop_gradient(params) | {"mtp": params["mtp"]}
  states, _ = transformer.predict_further(
    model, constant, jax.lax.stop_gradient(hidden), packed
  )
  losses = []
  for depth, state in enumerate(states, 1):
    targets, counted = transformer.following(packed, depth)
    logprobs, _ = ops.linear_logprobs(
      state,
      transformer.unembed(constant),
      targets,
      vocab_size=vocab_size,
      counted=counted,
    )
    losses.append(sft_loss(logprobs, counted.astype(jnp.float32)))
  return sum(losses) / len(losses)


def first_state(optimizer, as_reference, params: Params) -> RLState:
  """What a run begins with; `as_reference` is None if it refers to nothing."""
  return RLState(
    train=init_state(params, optimizer),
    reference=None if as_reference is None else as_reference(params),
    reference_step=jnp.zeros((), jnp.int32),
  )


def refer(as_reference, parked, state: RLState) -> RLState:
  """The state with its policy as the reference; `parked` parts wait."""
  state = state.replace(
    reference=as_reference(state.train.params),
    reference_step=jnp.copy(state.train.step),
  )
  return offload.park(state, parked)


def reference_copy(config: ModelConfig, params: Params) -> Params:
  """A hard copy of the policy, in the dtypes that it computes with."""
  copied = to_compute_dtype(params, config)
  return jax.tree.map(lambda x: jnp.array(x, copy=True), copied)
