"""A decoder-only transformer: tokens to hidden states to log-probabilities.

A block is a function of (its weights, x). Depth is a Python loop over slices of
the stacked weights, or a scan over them.
"""

from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from r1jax import sharding
from r1jax.models import cache as caches
from r1jax.models import ops, weights
from r1jax.models.attention import attend_cached, attend_packed
from r1jax.models.cache import Cache
from r1jax.models.config import ModelConfig
from r1jax.models.layers import rms_norm, rotation_of, swiglu
from r1jax.models.moe import Load, moe
from r1jax.models.remat import rematerialised
from r1jax.types import Ints, Packed, Params


@chex.dataclass(frozen=True)
class Forward:
  """All that a pass over rows of tokens makes."""

  hidden: Float[Array, "B T D"]  # Normalised: one matmul from the logits.
  mtp_hidden: Float[Array, "depth B T D"] | None  # Of token t + 2 and on.
  expert_load: Float[Array, "L E"]  # Tokens per expert; the MTP blocks last.
  balance_loss: Float[Array, ""]  # Sum over tokens, mean over layers.
  experts: Int[Array, "L B T k"]  # Chosen in each layer.
  differ: Bool[Array, "L B T"]  # Where the router would have chosen others.
  dropped: Float[Array, ""]  # Choices of experts that had no room.
  cache: Cache | None  # With the tokens appended.


class Transformer(nn.Module):
  """Owns the parameters; the functions below are how to call it."""

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

  def __call__(self, packed: Packed, **options) -> Forward:
    """See `forward`."""
    return forward(self, self.tree, packed, **options)


def run_block(
  block: Params,
  layer: int | Int[Array, ""],
  carry: tuple[Float[Array, "B T D"], caches.Buffers | None],
  given: Int[Array, "B T k"] | None,
  mask: Float[Array, "B T"],
  attend: Callable,
  config: ModelConfig,
) -> tuple[tuple[Float[Array, "B T D"], caches.Buffers | None], Load | None]:
  """Attention then feed-forward, each with a residual."""
  (x, rows), epsilon = carry, config.norm_epsilon
  block = _whole(block, config)
  h = rms_norm(x, block["attention_norm"], epsilon)
  out, rows = attend(block, layer, h, rows)
  x = split(x + out)
  h = rms_norm(x, block["feed_forward_norm"], epsilon)
  if "router" not in block:
    return (
      split(x + swiglu(h, block["gate_up"], block["down"])),
      rows,
    ), None
  out, load = moe(block, h, mask, config, given)
  return (split(x + out), rows), load


def _whole(block: Params, config: ModelConfig) -> Params:
  """A block's weights in the compute dtype, gathered but for those of experts,
  whose layer does that itself."""
  sizes = weights.block_weights(config, sparse="router" in block)

  def one(name, weight):
    if name not in weights.FLOAT32:
      weight = weight.astype(config.compute_dtype)
    if "expert" in sizes[name].axes:
      return weight
    return sharding.gathered(weight, sizes[name].axes)

  return {name: one(name, weight) for name, weight in block.items()}


def embed(
  params: Params, tokens: Int[Array, "B T"], config: ModelConfig
) -> Float[Array, "B T D"]:
  """What the first layer reads of each token."""
  table = sharding.gathered(params["embed"], ("vocab", "width"))
  # Cast last: the table's gradient adds up in its own precision.
  return split(table[tokens].astype(config.compute_dtype))


def split(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
  """Hidden states as they lie between layers."""
  return sharding.constrain(x, "rows", "tokens", None)


def groups(config: ModelConfig) -> tuple[tuple[str, int], ...]:
  """The stacks of like blocks, in the order of depth, and how many each has."""
  return ("dense", config.num_dense_layers), ("moe", config.num_moe_layers)


def run_layers(
  block_of: Callable, params: Params, carry, experts, config: ModelConfig
):
  """Every block in turn; what it carries, and the load of those with experts.

  `block_of(block, layer, carry, given)` returns the carry and a load or None.
  """
  load, first = no_load(carry[0], config), 0
  for group, count in groups(config):
    if not count:
      continue
    blocks = params[group]
    given = experts if group == "moe" else None
    run = rematerialised(block_of, config.remat, scanned=config.scan)
    if config.scan:
      carry, loads = jax.lax.scan(
        lambda carry, part, run=run: run(part[0], part[1], carry, part[2]),
        carry,
        (blocks, first + jnp.arange(count), given),
      )
    else:
      loads = []
      if not isinstance(blocks, tuple):
        blocks = take_apart(blocks, count)
      for i, block in enumerate(blocks):
        own = None if given is None else given[i]
        carry, one = run(block, first + i, carry, own)
        loads.append(one)
      loads = jax.tree.map(lambda *x: jnp.stack(x), *loads)
    if loads is not None:
      load = loads
    first += count
  return carry, load


def no_load(x: Float[Array, "B T D"], config: ModelConfig) -> Load:
  """The load of no layer at all."""
  count, k = (
    (config.experts.num_routed, config.experts.per_token)
    if config.experts
    else (0, 0)
  )
  return Load(
    tokens=jnp.zeros((0, count)),
    balance=jnp.zeros(0),
    indices=jnp.zeros((0, *x.shape[:2], k), jnp.int32),
    differ=jnp.zeros((0, *x.shape[:2]), bool),
    dropped=jnp.zeros(0),
  )


def predict_further(
  model: Transformer,
  params: Params,
  hidden: Float[Array, "B T D"],
  packed: Packed,
) -> tuple[Float[Array, "depth B T D"], Load]:
  """The MTP blocks (arXiv:2412.19437, sec. 2.2): states of token t + 2 and on.

  h'_t = W [norm(h_t); norm(embed(token t + k))], then one block and a norm; h
  is what the last norm before gave. The paper leaves that open; the released
  weights expect it.
  """
  c, states, loads = model.config, [], []
  following, attend, mask = (
    packed.targets,
    attend_rows(packed, c),
    mask_of(packed),
  )
  block_of = rematerialised(
    lambda *block: run_block(*block, mask, attend, c), c.remat, scanned=False
  )
  for k in range(c.mtp_depth):
    p = jax.tree.map(lambda w, k=k: w[k], params["mtp"])
    embedded = embed(params, following, c)
    both = [
      rms_norm(hidden, p["hidden_norm"], c.norm_epsilon),
      rms_norm(embedded, p["embed_norm"], c.norm_epsilon),
    ]
    project = p["project"].astype(c.compute_dtype)
    project = sharding.gathered(project, (None, "width"))
    x = split(jnp.concatenate(both, axis=-1) @ project)
    layer = c.num_layers + k
    (x, _), load = block_of(p["block"], layer, (x, None), None)
    hidden = rms_norm(x, p["final_norm"], c.norm_epsilon)
    following = jnp.roll(following, -1, axis=1)
    states.append(hidden)
    if load is not None:
      loads.append(load)
  load = jax.tree.map(lambda *x: jnp.stack(x), *loads) if loads else None
  return jnp.stack(states), load or no_load(hidden, c)


def mask_of(packed: Packed) -> Float[Array, "B T"]:
  """1 where a slot holds a token."""
  return (packed.positions >= 0).astype(jnp.float32)


def attend_rows(packed: Packed, config: ModelConfig) -> Callable:
  """Attention of a block without a cache, as `run_block` calls it."""
  rotation = rotation_of(packed.positions, config)
  return lambda block, layer, x, rows: (
    attend_packed(block, x, packed, rotation, config),
    rows,
  )


def init(model: Transformer, key: jax.Array) -> Params:
  """Fresh parameters."""
  return model.init(key, pack_rows(np.zeros((1, 2), np.int32)))["params"]


def forward(
  model: Transformer,
  params: Params,
  packed: Packed,
  *,
  cache: Cache | None = None,
  experts: Int[Array, "L B T k"] | None = None,
  mtp: bool = False,
) -> Forward:
  """Hidden states of rows of tokens.

  Args:
    model: its architecture.
    params: its weights; `unstack` made them quicker to loop over.
    packed: rows, which see what `Packed` says; with a cache, each row is one
      text that goes on, and sees the cache and itself.
    cache: the tokens before; None if there are none.
    experts: of every layer that has some, to use instead of the router's
      choice; the gates are still the router's.
    mtp: also make the states of the MTP blocks.
  """
  c, params = model.config, jax.tree.map(jnp.asarray, params)
  if mtp and cache is not None:
    raise ValueError("the MTP blocks have no cache; ask for one or the other")
  mask = mask_of(packed)
  if cache is None:
    attend = attend_rows(packed, c)
  else:
    positions = cache.positions[:, None] + jnp.arange(packed.tokens.shape[1])
    rotation = rotation_of(positions, c)
    attend = lambda block, layer, x, rows: attend_cached(
      block, x, rotation, cache, rows, layer, c
    )

  def block_of(block, layer, carry, given):
    return run_block(block, layer, carry, given, mask, attend, c)

  x = embed(params, packed.tokens, c)
  rows = None if cache is None else cache.rows
  (x, rows), load = run_layers(block_of, params, (x, rows), experts, c)
  hidden = rms_norm(x, params["final_norm"], c.norm_epsilon)
  further = None
  if mtp and c.mtp_depth:
    further, more = predict_further(model, params, hidden, packed)
    load = jax.tree.map(lambda *x: jnp.concatenate(x), load, more)
  if cache is not None:
    added = jnp.sum(packed.positions >= 0, axis=1)
    cache = cache.replace(rows=rows, lengths=cache.lengths + added)
  return Forward(
    hidden=hidden,
    mtp_hidden=further,
    expert_load=load.tokens,
    balance_loss=load.balance.mean() if len(load.balance) else jnp.zeros(()),
    experts=load.indices,
    differ=load.differ,
    dropped=load.dropped.sum(),
    cache=cache,
  )


def unstack(model: Transformer, params: Params) -> Params:
  """The same weights with the stacked blocks taken apart, one dict per layer.

  A program that runs the model many times, token after token, takes them apart
  once. Layers that run as a scan stay stacked.
  """
  if model.config.scan:
    return params
  apart = {
    group: take_apart(params[group], count)
    for group, count in groups(model.config)
    if count
  }
  return params | apart


def take_apart(stacked: Params, count: int) -> tuple[Params, ...]:
  """The `count` slices of every weight; their gradients are joined again."""
  leaves, treedef = jax.tree.flatten(stacked)
  slices = [jax.lax.split(w, [1] * count) for w in leaves]
  return tuple(
    treedef.unflatten([jnp.squeeze(parts[i], 0) for parts in slices])
    for i in range(count)
  )


def extend(
  model: Transformer, params: Params, tokens: Int[Array, "B T"], cache: Cache
) -> tuple[Float[Array, "B T D"], Cache]:
  """Hidden states of T more tokens in each row of `cache`."""
  made = forward(model, params, pack_rows(tokens), cache=cache)
  return made.hidden, made.cache


def logits(
  model: Transformer, params: Params, hidden: Float[Array, "*B D"]
) -> Float[Array, "*B V"]:
  """What softmax makes the probabilities of the next token from."""
  weight = sharding.gathered(
    unembed(params).astype(hidden.dtype), ("width", "vocab")
  )
  return jnp.dot(
    hidden, weight, preferred_element_type=model.config.logits_dtype
  )


def unembed(params: Params) -> Float[Array, "D V"]:
  """Hidden states to logits; the embedding itself where the two are tied."""
  return params["unembed"] if "unembed" in params else params["embed"].T


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


def following(
  packed: Packed, depth: int = 1
) -> tuple[Int[Array, "B T"], Bool[Array, "B T"]]:
  """The targets of MTP block `depth`, and True where there is one.

  They are token t + 1 + depth, as far as the text goes.
  """
  roll = lambda x: jnp.roll(x, -depth, axis=1)
  # A text may begin where another one ends, in the row and in `origin`.
  follows = (packed.origin >= 0) & (
    roll(packed.origin) == packed.origin + depth
  )
  follows &= roll(packed.positions) == packed.positions + depth
  return roll(packed.targets), follows


def token_logprobs(
  model: Transformer, params: Params, tokens: Ints
) -> Float[Array, "B T"]:
  """log p(tokens[t] | tokens[:t]) of [B, T], in nats; 0 for the first token."""
  hidden = forward(model, params, pack_rows(tokens)).hidden[:, :-1]
  targets = jnp.asarray(tokens)[:, 1:]
  logprobs, _ = ops.linear_logprobs(hidden, unembed(params), targets)
  return jnp.pad(logprobs, ((0, 0), (1, 0)))
