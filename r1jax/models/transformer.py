"""A decoder-only transformer: tokens to hidden states to log-probabilities.

A block is a function of (its weights, x, its cache). Depth is a Python loop
over the slices of the stacked weights.
"""

from collections.abc import Callable, Iterator

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from r1jax.models import ops, weights
from r1jax.models.attention import Cache, attend_cached, attend_packed
from r1jax.models.config import ModelConfig
from r1jax.models.layers import rms_norm, swiglu
from r1jax.models.moe import moe
from r1jax.types import Packed, Params


@chex.dataclass(frozen=True)
class Forward:
  """All that a pass over packed rows makes."""

  hidden: Float[Array, "B T D"]  # Normalised: one matmul from the logits.
  mtp_hidden: Float[Array, "B T D"] | None  # Of token t + 2, when asked for.
  expert_load: Float[Array, "L E"]  # Tokens per expert; the MTP block last.
  balance_loss: Float[Array, ""]  # Sum over tokens, mean over layers.


class Transformer(nn.Module):
  """Owns the parameters; `forward` and `extend` below are how to call it."""

  config: ModelConfig

  def setup(self):
    """Declares the tree of `weights.weights`, entry by entry."""
    scale = self.config.init_scale
    self.tree = {
      name: self.param(name, weights.initialise, entry, scale)
      if isinstance(entry, dict)
      else self.param(
        name, lambda key, w=entry: weights.initialise(key, {"": w}, scale)[""]
      )
      for name, entry in weights.weights(self.config).items()
    }

  def __call__(self, packed: Packed, *, mtp: bool = False) -> Forward:
    """Hidden states of packed rows, with no cache."""
    c, params = self.config, self.tree
    mask = (packed.positions >= 0).astype(jnp.float32)
    attend = lambda block, _, x: attend_packed(
      block, x, packed.positions, packed.k_start, packed.prefix_end, c
    )
    x = params["embed"][packed.tokens]
    loads, balances = [], []
    for layer, block in enumerate(blocks(params, c)):
      x, load, balance = run_block(block, layer, x, mask, attend, c)
      loads += load
      balances += balance
    hidden = rms_norm(x, params["final_norm"], c.norm_epsilon)
    mtp_hidden = None
    if mtp:
      mtp_hidden, load, balance = self.predict_further(
        hidden, packed, mask, attend
      )
      loads += load
      balances += balance
    return Forward(
      hidden=hidden,
      mtp_hidden=mtp_hidden,
      expert_load=jnp.stack(loads) if loads else jnp.zeros((0, c.num_experts)),
      balance_loss=jnp.mean(jnp.stack(balances)) if balances else jnp.zeros(()),
    )

  def predict_further(self, hidden, packed, mask, attend):
    """The MTP block (arXiv:2412.19437, sec. 2.2): states of token t + 2.

    h'_t = W [norm(h_t); norm(embed(token t + 1))], then one block. The paper
    leaves open which h it is; the released weights expect the final norm's.
    """
    c, p = self.config, self.tree["mtp"]
    following = self.tree["embed"][packed.targets]
    both = [
      rms_norm(hidden, p["hidden_norm"], c.norm_epsilon),
      rms_norm(following, p["embed_norm"], c.norm_epsilon),
    ]
    x = jnp.concatenate(both, axis=-1) @ p["project"]
    x, load, balance = run_block(p["block"], c.num_layers, x, mask, attend, c)
    return rms_norm(x, p["final_norm"], c.norm_epsilon), load, balance

  def extend(
    self, tokens: Int[Array, "B T"], cache: Cache
  ) -> tuple[Float[Array, "B T D"], Cache]:
    """Hidden states of T more tokens per row, and the longer cache."""
    c = self.config
    prefix_length = cache.prefix[0].shape[0]
    positions = (
      prefix_length + cache.lengths[:, None] + jnp.arange(tokens.shape[1])
    )
    rows = list(cache.rows)

    def attend(block, layer, x):
      out, rows[layer] = attend_cached(
        block, x, positions, cache.prefix[layer], rows[layer], cache.lengths, c
      )
      return out

    x = self.tree["embed"][tokens]
    mask = jnp.ones(tokens.shape)
    for layer, block in enumerate(blocks(self.tree, c)):
      x, _, _ = run_block(block, layer, x, mask, attend, c)
    hidden = rms_norm(x, self.tree["final_norm"], c.norm_epsilon)
    lengths = cache.lengths + tokens.shape[1]
    return hidden, cache.replace(rows=tuple(rows), lengths=lengths)


def blocks(params: Params, config: ModelConfig) -> Iterator[Params]:
  """The weights of each layer, first to last."""
  for name, count in (
    ("dense", config.num_dense_layers),
    ("moe", config.num_moe_layers),
  ):
    for i in range(count):
      yield jax.tree.map(lambda w, i=i: w[i], params[name])


def run_block(
  block: Params,
  layer: int,
  x: Float[Array, "B T D"],
  mask: Float[Array, "B T"],
  attend: Callable,
  config: ModelConfig,
) -> tuple[Float[Array, "B T D"], list, list]:
  """Attention then feed-forward, each with a residual; load and balance."""
  epsilon = config.norm_epsilon
  x = x + attend(block, layer, rms_norm(x, block["attention_norm"], epsilon))
  h = rms_norm(x, block["feed_forward_norm"], epsilon)
  if "router" not in block:
    return x + swiglu(h, block["gate_up"], block["down"]), [], []
  out, load, balance = moe(block, h, mask, config)
  return x + out, [load], [balance]


def init(model: Transformer, key: jax.Array) -> Params:
  """Fresh parameters."""
  return model.init(key, pack_rows(np.zeros((1, 2), np.int32)))["params"]


def forward(
  model: Transformer, params: Params, packed: Packed, *, mtp: bool = False
) -> Forward:
  """Hidden states of packed rows."""
  return model.apply({"params": params}, packed, mtp=mtp)


def extend(
  model: Transformer, params: Params, tokens: Int[Array, "B T"], cache: Cache
) -> tuple[Float[Array, "B T D"], Cache]:
  """Hidden states of T more tokens in each row of `cache`."""
  return model.apply({"params": params}, tokens, cache, method=model.extend)


def pack_rows(
  tokens: Int[Array, "B T"] | Int[np.ndarray, "B T"],
) -> Packed:
  """Whole rows as `Packed`: one text per row, a value for all but the first."""
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  origin = jnp.arange(tokens.size).reshape(tokens.shape) + 1
  zeros = jnp.zeros(tokens.shape, jnp.int32)
  return Packed(
    tokens=jnp.asarray(tokens),
    positions=positions,
    k_start=zeros,
    prefix_end=zeros,
    targets=jnp.roll(jnp.asarray(tokens), -1, axis=1),
    origin=origin.at[:, -1].set(-1),
  )


def following(packed: Packed) -> tuple[Int[Array, "B T"], Bool[Array, "B T"]]:
  """The targets of the MTP block, token t + 2, and True where there is one."""
  roll = lambda x: jnp.roll(x, -1, axis=1)
  # A text may begin where another one ends, in the row and in `origin`.
  follows = (packed.origin >= 0) & (roll(packed.origin) == packed.origin + 1)
  follows &= roll(packed.positions) == packed.positions + 1
  return roll(packed.targets), follows


def token_logprobs(
  model: Transformer, params: Params, tokens: Int[Array, "B T"]
) -> Float[Array, "B T"]:
  """log p(tokens[t] | tokens[:t]), in nats; 0 for the first token."""
  hidden = forward(model, params, pack_rows(tokens)).hidden[:, :-1]
  logprobs, _ = ops.linear_logprobs(
    hidden.reshape(-1, hidden.shape[-1]),
    params["unembed"],
    jnp.asarray(tokens)[:, 1:].reshape(-1),
  )
  rows, width = tokens.shape
  return jnp.pad(logprobs.reshape(rows, width - 1), ((0, 0), (1, 0)))
