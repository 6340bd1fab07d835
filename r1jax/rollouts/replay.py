"""Router replay: the trainer's tokens go to the experts that they went to.

Sampler and trainer add numbers in another order, and where two experts are
nearly as good they choose differently: the policies then differ by far more
than rounding. So the sampler records its choice (`make_engine`,
`record_experts`), and `transformer.forward(experts=)` repeats it; what each
expert counts is still up to the trainer's router, which goes on learning.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from r1jax.models.moe import router_mismatch
from r1jax.types import Ints, Packed, Rollout


def lay_out(rollout: Rollout, packed: Packed) -> Int[np.ndarray, "... L k"]:
  """The recorded experts of every slot of packed rows [*B, T, L, k]; int16.

  A slot whose target is token t of a completion takes `experts[p, g, t]`, which
  read the slot's own token. The other slots of a text hold its prompt, and take
  those of `prompt_experts`. Unused slots hold -1: the router's own choice.
  Tokens come first, to be split like tokens; the model wants L first.

  Args:
    rollout: with its experts recorded.
    packed: rows that `pack_rollout` made of it, maybe as microbatches.
  """
  origin, positions = np.asarray(packed.origin), np.asarray(packed.positions)
  experts, of_prompts = rollout.experts, rollout.prompt_experts
  tail = experts.shape[3:]
  out = np.full((*origin.shape, *tail), -1, np.int16)
  sampled = origin >= 0
  out[sampled] = experts.reshape(-1, *tail)[origin[sampled]]
  # A prompt stands before its completions, which say whose it is.
  width = origin.shape[-1]
  slots = np.where(sampled, np.arange(width), width - 1)
  following = np.minimum.accumulate(slots[..., ::-1], axis=-1)[..., ::-1]
  owner = np.take_along_axis(origin, following, axis=-1)
  prompts = (positions >= 0) & ~sampled
  row = owner[prompts] // np.prod(rollout.completions.shape[1:])
  out[prompts] = of_prompts[row, positions[prompts]]
  return out


def differing(own: Int[Array, "L *B k"], recorded: Ints) -> Float[Array, "*B"]:
  """The share of layers in which a token's own experts are not the recorded.

  Experts are compared as sets. 0 where nothing was recorded.

  Args:
    own: what the router chose by itself: `Forward.experts` of a pass that
      repeated nothing.
    recorded: likewise [L, *B, k], -1 where nothing was.
  """
  return jnp.mean(router_mismatch(own, recorded), axis=0)
