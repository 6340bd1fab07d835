"""A decoder-only transformer in Flax linen: DeepSeek-V3 and V2, Qwen2, Llama.

Modules own `params` and nothing else; each declares its weights where it uses
them. Like layers are one stack of weights [L, ...], and depth is a scan over
it. Tiny models run their layers in a loop instead (`config.scan` False), over
modules of their own names whose weights are slices of the stack (`unstack`).
"""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from r1jax.models import cache as caches
from r1jax.models.attention import GroupedQueryAttention, LatentAttention
from r1jax.models.cache import Cache
from r1jax.models.config import Latent, ModelConfig, replace
from r1jax.models.layers import Layer, RMSNorm
from r1jax.models.moe import FeedForward, Load, MoE, no_load
from r1jax.models.rows import RowLayout, pack_rows, row_layout
from r1jax.ops.blockwise import OUTPUT as ATTENTION_OUTPUT
from r1jax.parallel import sharding, vocab
from r1jax.types import Ints, Packed, Params

BLOCK_INPUT = "block_input"  # Names it for policies of `jax.checkpoint`.

Carry = tuple[Float[Array, "B T D"], Cache | None]


@chex.dataclass(frozen=True)
class Forward:
  """The results of a forward pass over rows of tokens."""

  hidden: Float[Array, "B T D"]  # Normalised: one matmul from the logits.
  mtp_hidden: Float[Array, "depth B T D"] | None  # Of token t + 2 and on.
  expert_load: Float[Array, "L E"]  # Tokens per expert; the MTP blocks last.
  balance_loss: Float[Array, ""]  # Sum over tokens, mean over layers.
  experts: Int[Array, "L B T k"]  # Used in each layer.
  router_mismatch: Bool[Array, "L B T"]  # Replayed ones are not the router's.
  cache: Cache | None  # With the tokens appended.


class Block(Layer):
  """Attention, then feed-forward: each on the norm of x, and added to x."""

  sparse: bool  # Whether the feed-forward is a mixture of experts.

  @nn.compact
  def __call__(
    self,
    carry: Carry,
    layer: int | Int[Array, ""] | None,
    replay: Int[Array, "B T k"] | None,
    layout: RowLayout,
  ) -> tuple[Carry, Load | None]:
    """The carry after this layer, and the load of its experts, if any.

    Args:
      carry: hidden states and the cache, None if there is none.
      layer: the layer's number, for the cache.
      replay: experts to use instead of the router's choice.
      layout: of the rows.
    """
    (x, cache), c, load = carry, self.config, None
    norm = lambda name: RMSNorm(c.norm_epsilon, name=name)
    latent = isinstance(c.attention, Latent)
    attention = (LatentAttention if latent else GroupedQueryAttention)(
      c, name="attention"
    )
    x = checkpoint_name(x, BLOCK_INPUT)
    out, cache = attention(norm("attention_norm")(x), layout, layer, cache)
    x = shard_constraint(x + out)
    h = norm("feed_forward_norm")(x)
    if self.sparse:
      out, load = MoE(c, name="feed_forward")(h, layout.is_token, replay)
    else:
      out = FeedForward(c, c.dense_width, name="feed_forward")(h)
    return (shard_constraint(x + out), cache), load


class MTPBlock(Layer):
  """Multi-token prediction: one more token ahead (arXiv:2412.19437, sec. 2.2).

  h'_t = W [norm(h_t); norm(embedding of token t + k)], then one block and a
  norm. h is the normalised output of the model or of the block before, which
  the paper leaves open; the released weights expect it.
  """

  @nn.compact
  def __call__(
    self,
    hidden: Float[Array, "B T D"],
    embedded: Float[Array, "B T D"],
    layout: RowLayout,
  ) -> tuple[Float[Array, "B T D"], tuple[Float[Array, "B T D"], Load | None]]:
    """The states of the next depth, as the carry and as a result."""
    c, d = self.config, hidden.shape[-1]
    norm = lambda name: RMSNorm(c.norm_epsilon, name=name)
    both = norm("hidden_norm")(hidden), norm("embed_norm")(embedded)
    project = self.dense_weight("project", (2 * d, d), (None, "width"))
    x = shard_constraint(jnp.concatenate(both, axis=-1) @ project)
    block = remat(Block, c)(c, sparse=c.num_moe_layers > 0, name="block")
    (x, _), load = block((x, None), None, None, layout)
    hidden = norm("final_norm")(x)
    return hidden, (hidden, load)


class Transformer(Layer):
  """Tokens to hidden states.

  `apply` takes the weights as `unstack` returns them; `forward` calls it.
  """

  def setup(self):
    """Declares the weights and blocks; Flax calls it."""
    c, normal = self.config, nn.initializers.normal(self.config.init_scale)
    table = nn.with_logical_partitioning(normal, ("vocab", "width"))
    self.embed = self.param("embed", table, (c.vocab_size, c.width))
    if not c.tied:  # Not used here: see `logits` and `logprobs`.
      matrix = nn.with_logical_partitioning(normal, ("width", "vocab"))
      self.param("unembed", matrix, (c.width, c.vocab_size))
    block = remat(Block, c)
    self.dense = self.stack(block, c.num_dense_layers, 2, sparse=False)
    self.moe = self.stack(block, c.num_moe_layers, 2, sparse=True)
    self.mtp = self.stack(MTPBlock, c.mtp_depth, 1)
    self.final_norm = RMSNorm(c.norm_epsilon)

  @nn.nowrap
  def stack(self, block: type[nn.Module], count: int, per_layer: int, **fields):
    """`count` like blocks for `run_stack`; None if there are none.

    Called with a carry, `per_layer` inputs that differ by layer, and the layout
    of the rows.
    """
    c = self.config
    if not count:
      return None
    if not c.scan:
      return [block(c, **fields) for _ in range(count)]
    scan = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(0,) * per_layer + (nn.broadcast,),
      length=count,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scan(c, **fields)

  def __call__(
    self,
    packed: Packed,
    *,
    cache: Cache | None = None,
    experts: Int[Array, "L B T k"] | None = None,
    mtp: bool = False,
  ) -> Forward:
    """See `forward`."""
    c, layout = self.config, row_layout(packed, cache, self.config)
    if mtp and cache is not None:
      raise ValueError("the MTP blocks have no cache; ask for one or the other")
    carry = self.embedding(packed.tokens), cache
    # In a loop a layer's number picks its buffers of the cache: it is an int.
    layers = (np.arange if c.scan else range)(c.num_layers)
    dense, sparse = layers[: c.num_dense_layers], layers[c.num_dense_layers :]
    load = None
    if self.dense:
      carry, load = run_stack(self.dense, carry, (dense, None), layout)
    if self.moe:
      carry, load = run_stack(self.moe, carry, (sparse, experts), layout)
    (x, cache), load = carry, load or no_load(*packed.tokens.shape, c.experts)
    hidden, mtp_hidden = self.final_norm(x), None
    if mtp and c.mtp_depth:
      mtp_hidden, mtp_load = self.predict_further(hidden, packed)
      load = jax.tree.map(lambda *x: jnp.concatenate(x), load, mtp_load)
    if cache is not None:
      cache = caches.advance(cache, jnp.sum(packed.positions >= 0, axis=1))
    losses = load.balance_loss
    return Forward(
      hidden=hidden,
      mtp_hidden=mtp_hidden,
      expert_load=load.tokens,
      balance_loss=losses.mean() if len(losses) else jnp.zeros(()),
      experts=load.indices,
      router_mismatch=load.mismatch,
      cache=cache,
    )

  def predict_further(
    self, hidden: Float[Array, "B T D"], packed: Packed
  ) -> tuple[Float[Array, "depth B T D"], Load]:
    """The states of the MTP blocks, each for one token further."""
    c = self.config
    embedded = jnp.stack(
      [
        self.embedding(jnp.roll(packed.targets, -k, axis=1))
        for k in range(c.mtp_depth)
      ]
    )
    layout = row_layout(packed, None, c)
    _, (states, load) = run_stack(self.mtp, hidden, (embedded,), layout)
    return states, load or no_load(*packed.tokens.shape, c.experts)

  def embedding(self, tokens: Ints) -> Float[Array, "B T D"]:
    """What the first layer reads of each token."""
    table = sharding.gather_width(self.embed, ("vocab", "width"))
    # Cast last: the gradient of the table accumulates in its own precision.
    return shard_constraint(table[tokens].astype(self.config.compute_dtype))


def shard_constraint(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
  """Hidden states, split over the mesh as they are between layers."""
  return sharding.shard_constraint(x, "rows", "tokens", None)


def remat(block: type[nn.Module], config: ModelConfig) -> type[nn.Module]:
  """`block`, with what its gradient keeps and recomputes by `config.remat`.

  - "none": everything is kept.
  - "block": its input is kept; the gradient runs the block again.
  - "attention": the output of attention is kept as well and not computed again:
    in long rows attention is most of a block's time.
  - "host": its input is kept, in the host's memory, where the inputs of all
    blocks would fill the device's.
  """
  if config.remat == "none":
    return block
  policies, policy = jax.checkpoint_policies, None
  if config.remat == "attention":
    policy = policies.save_only_these_names(ATTENTION_OUTPUT)
  if config.remat == "host":
    policy = policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=[BLOCK_INPUT],
      offload_src="device",
      offload_dst="pinned_host",
    )
  static = () if config.scan else (2,)  # The layer's number; `self` is 0.
  return nn.remat(
    block, policy=policy, prevent_cse=not config.scan, static_argnums=static
  )


def run_stack(blocks, carry, per_layer: tuple, layout: RowLayout):
  """All blocks in turn: what they carry, and their results, stacked [L, ...].

  `per_layer` are inputs with a leading L, or None.
  """
  if not isinstance(blocks, (list, tuple)):
    return blocks(carry, *per_layer, layout)
  results = []
  for i, block in enumerate(blocks):
    inputs = [None if x is None else x[i] for x in per_layer]
    carry, result = block(carry, *inputs, layout)
    results.append(result)
  return carry, jax.tree.map(lambda *x: jnp.stack(x), *results)


def stacks(config: ModelConfig) -> dict[str, int]:
  """The stacks of like blocks, by name, and how many blocks each has."""
  counts = {
    "dense": config.num_dense_layers,
    "moe": config.num_moe_layers,
    "mtp": config.mtp_depth,
  }
  return {name: count for name, count in counts.items() if count}


def unstack(model: Transformer, params: Params) -> Params:
  """The weights as `apply` takes them: for a loop, each layer by its name.

  A program that runs the model many times, token after token, does it once
  before; `forward` takes either.
  """
  if model.config.scan:
    return params
  params = dict(params)
  for name, count in stacks(model.config).items():
    if name in params:
      layers = _split_stack(params.pop(name), count)
      params |= {f"{name}_{i}": layer for i, layer in enumerate(layers)}
  return params


def _split_stack(stack: Params, count: int) -> list[Params]:
  """The `count` layers of a stack; one split, so their gradients join once."""
  leaves, treedef = jax.tree.flatten(stack)
  slices = [jax.lax.split(w, [1] * count) for w in leaves]
  return [
    treedef.unflatten([jnp.squeeze(parts[i], 0) for parts in slices])
    for i in range(count)
  ]


def init_boxed(config: ModelConfig, key: jax.Array) -> Params:
  """Fresh weights in float32, stacked, each boxed with its logical axes."""
  model = Transformer(replace(config, scan=True))
  packed = pack_rows(np.zeros((1, 2), np.int32))
  return model.init(key, packed, mtp=True)["params"]


@functools.partial(jax.jit, static_argnames="model")
def init(model: Transformer, key: jax.Array) -> Params:
  """Fresh weights in float32, a nested dict of arrays; layers are stacked."""
  return nn.unbox(init_boxed(model.config, key))


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
    model: the architecture.
    params: its weights, stacked, or as `unstack` returns them.
    packed: rows of texts; see `Packed`. With a cache, each row is one text
      that continues the cache's row.
    cache: of the tokens before; None if there are none.
    experts: to use instead of the router's choice, for every layer that has
      some; below 0 for the router's choice. Gates are the router's.
    mtp: whether to compute the states of the MTP blocks as well.

  Raises ValueError if both a cache and the MTP blocks are asked for.
  """
  params = unstack(model, jax.tree.map(jnp.asarray, params))
  return model.apply(
    {"params": params}, packed, cache=cache, experts=experts, mtp=mtp
  )


def mtp_hidden(
  model: Transformer,
  params: Params,
  hidden: Float[Array, "B T D"],
  packed: Packed,
) -> Float[Array, "depth B T D"]:
  """States of the MTP blocks, given the normalised states of the model."""
  params = unstack(model, params)
  states, _ = model.apply(
    {"params": params}, hidden, packed, method="predict_further"
  )
  return states


def extend(
  model: Transformer, params: Params, tokens: Int[Array, "B T"], cache: Cache
) -> tuple[Float[Array, "B T D"], Cache]:
  """Hidden states of T more tokens in each row of `cache`."""
  result = forward(model, params, pack_rows(tokens), cache=cache)
  return result.hidden, result.cache


def unembed(params: Params) -> Float[Array, "D V"]:
  """From hidden states to logits; the embedding itself where they are tied."""
  return params["unembed"] if "unembed" in params else params["embed"].T


def logits(
  params: Params, hidden: Float[Array, "*B D"]
) -> Float[Array, "*B V"]:
  """Logits of the next token, in float32."""
  weight = unembed(params).astype(hidden.dtype)
  weight = sharding.gather_width(weight, ("width", "vocab"))
  return jnp.dot(hidden, weight, preferred_element_type=jnp.float32)


def logprobs(
  params: Params,
  hidden: Float[Array, "*B T D"],
  targets: Int[Array, "*B T"],
  **options,
) -> tuple[Float[Array, "*B T"], Float[Array, "*B T"]]:
  """log p(target) and the entropy, in nats; see `ops.linear_logprobs`."""
  return vocab.linear_logprobs(hidden, unembed(params), targets, **options)


def token_logprobs(
  model: Transformer, params: Params, tokens: Ints
) -> Float[Array, "B T"]:
  """log p(tokens[t] | tokens[:t]) of [B, T], in nats; 0 for the first token."""
  hidden = forward(model, params, pack_rows(tokens)).hidden[:, :-1]
  result, _ = logprobs(params, hidden, jnp.asarray(tokens)[:, 1:])
  return jnp.pad(result, ((0, 0), (1, 0)))
