"""Log-probabilities of tokens with the vocabulary split over devices."""

import jax
from jaxtyping import Array, Bool, Float, Int

from r1jax import ops
from r1jax.parallel import sharding
from r1jax.parallel.mesh import current_mesh


def linear_logprobs(
  hidden: Float[Array, "*B T D"],
  unembed: Float[Array, "D V"],
  targets: Int[Array, "*B T"],
  *,
  counted: Bool[Array, "*B T"] | None = None,
  **options,
) -> tuple[Float[Array, "*B T"], Float[Array, "*B T"]]:
  """Log-probabilities (nats) of the targets, and entropies (nats).

  The arguments are those of `ops.linear_logprobs`; each device computes its own
  tokens of [B, T], `chunk` of them at a time. The gradient of `unembed` is
  summed over devices once, after all chunks.
  """
  mesh = current_mesh()
  if mesh is None or hidden.ndim != 3:
    return ops.linear_logprobs(
      hidden, unembed, targets, counted=counted, **options
    )
  tokens = sharding.spec(("rows", "tokens", None), hidden.shape, mesh)
  weight = sharding.spec(("width", "vocab"), unembed.shape, mesh)
  width_axes, vocab_axes = weight
  per_token = jax.P(*tokens[:2])

  def on_device(unembed, hidden, targets, counted):
    if width_axes is not None:
      unembed = jax.lax.all_gather(unembed, width_axes, tiled=True)
    return ops.linear_logprobs(
      hidden, unembed, targets, counted=counted, axis=vocab_axes, **options
    )

  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(weight, tokens, per_token, per_token),
    out_specs=(per_token, per_token),
    check_vma=False,
  )(unembed.astype(hidden.dtype), hidden, targets, counted)
