"""A decoder-only transformer in Flax linen: DeepSeek-V3 and V2, Qwen2, Llama.

Modules declare their parameters where they use them, and have no other state.
The weights of equal layers are stored as one stack [L, ...]. Large models scan
over the stack. Small models run a loop of separately named layers instead
(`config.scan` False), whose weights `unstack` slices from the stack.
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
from r1jax.models.remat import BLOCK_INPUT, remat
from r1jax.models.rows import RowLayout, pack_rows, row_layout
from r1jax.parallel import sharding, vocab
from r1jax.types import Ints, Packed, Params

Carry = tuple[Float[Array, "B T D"], Cache | None]


@chex.dataclass(frozen=True)
class Forward:
  """The results of a forward pass.

  L counts the layers with experts, followed by the MTP blocks if those ran.
  """

  hidden: Float[Array, "B T D"]  # After the final norm; see `logits`.
  mtp_hidden: Float[Array, "depth B T D"] | None  # To predict tokens t + 2, ...
  expert_load: Float[Array, "L E"]  # Tokens of each expert.
  balance_loss: Float[Array, ""]  # Summed over tokens, mean over layers.
  experts: Int[Array, "L B T k"]  # The experts of each token.
  router_mismatch: Bool[Array, "L B T"]  # See `moe.Routing`.
  cache: Cache | None  # With the tokens appended; None if none was given.


class Block(Layer):
  """A pre-norm transformer block: attention, then a feed-forward layer."""

  sparse: bool  # Whether the feed-forward is a mixture of experts.

  @nn.compact
  def __call__(
    self,
    carry: Carry,
    layer: int | Int[Array, ""] | None,
    replay: Int[Array, "B T k"] | None,
    layout: RowLayout,
  ) -> tuple[Carry, Load | None]:
    """The carry after this layer, and the load of its experts or None.

    Args:
      carry: hidden states, and the cache or None.
      layer: the layer's number, for the cache.
      replay: experts to use instead of the router's choice; see `moe.route`.
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
  """A multi-token prediction (MTP) module (arXiv:2412.19437, sec. 2.2).

  Depth k = 1, 2, ... predicts token t + 1 + k. It computes

    h'_t = W [norm(h_t); norm(embedding of token t + k)]

  and applies one block and a norm. h is the output of the model, or of depth
  k - 1, after its final norm. The paper does not say whether h is normalised;
  the released weights expect it.
  """

  @nn.compact
  def __call__(
    self,
    hidden: Float[Array, "B T D"],
    embedded: Float[Array, "B T D"],
    layout: RowLayout,
  ) -> tuple[Float[Array, "B T D"], tuple[Float[Array, "B T D"], Load | None]]:
    """The hidden states of this depth, as the carry and as a result.

    Args:
      hidden: hidden states of the previous depth, after its final norm.
      embedded: embeddings of the tokens to add.
      layout: of the rows.
    """
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
  """The whole model: tokens to hidden states.

  Use `forward`, which calls `apply` with the weights that it expects.
  """

  def setup(self):
    """Declares the embeddings, the blocks and the final norm."""
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
    """`count` equal blocks as a scan or a list, for `run_stack`; None for 0.

    Args:
      block: the class of the blocks, called with a carry, `per_layer` inputs
        that differ by layer, and the layout of the rows.
      count: number of blocks.
      per_layer: number of inputs that differ by layer.
      fields: of the blocks, apart from the config.
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
      raise ValueError("MTP blocks have no cache: mtp=True needs cache=None")
    carry = self.embedding(packed.tokens), cache
    # A scan needs an array of layer numbers. In a loop they are ints, which
    # select a layer's buffers from the cache, a tuple.
    layers = (np.arange if c.scan else range)(c.num_layers)
    dense, moe = layers[: c.num_dense_layers], layers[c.num_dense_layers :]

    # Dense layers, then layers with experts.
    load = None
    if self.dense:
      carry, load = run_stack(self.dense, carry, (dense, None), layout)
    if self.moe:
      carry, load = run_stack(self.moe, carry, (moe, experts), layout)
    (x, cache), load = carry, load or no_load(*packed.tokens.shape, c.experts)
    hidden, mtp_hidden = self.final_norm(x), None

    # Multi-token prediction.
    if mtp and c.mtp_depth:
      mtp_hidden, mtp_load = self.run_mtp(hidden, packed)
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

  def run_mtp(
    self, hidden: Float[Array, "B T D"], packed: Packed
  ) -> tuple[Float[Array, "depth B T D"], Load]:
    """The hidden states of all MTP blocks, and their load."""
    c = self.config
    # targets[t] is token t + 1; rolled by k, it is token t + 1 + k. Where that
    # is beyond the text, `mtp_targets` masks the result.
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
    """The embeddings of tokens, in the compute dtype."""
    table = sharding.gather_width(self.embed, ("vocab", "width"))
    # Cast after the lookup, so that the gradient of the table accumulates in
    # the dtype of the parameters.
    return shard_constraint(table[tokens].astype(self.config.compute_dtype))


def shard_constraint(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
  """Hidden states, with the sharding that they have between layers."""
  return sharding.shard_constraint(x, "rows", "tokens", None)


def run_stack(blocks, carry, per_layer: tuple, layout: RowLayout):
  """The final carry of all blocks, and their results, stacked [L, ...].

  Args:
    blocks: from `Transformer.stack`.
    carry: of the first block.
    per_layer: inputs with a leading L, or None.
    layout: of the rows.
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
  """The number of blocks in each stack of the parameters, by name."""
  counts = {
    "dense": config.num_dense_layers,
    "moe": config.num_moe_layers,
    "mtp": config.mtp_depth,
  }
  return {name: count for name, count in counts.items() if count}


def unstack(model: Transformer, params: Params) -> Params:
  """The weights as `Transformer.apply` expects them.

  For a loop, each stack is split into layers "moe_0", "moe_1", ...; for a scan
  nothing changes. `forward` accepts both forms. A loop that decodes token by
  token should unstack once before it starts.
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
  """The `count` layers of a stack.

  `jax.lax.split` makes their gradient one concatenation, where indexing would
  add up `count` arrays of the size of the stack.
  """
  leaves, treedef = jax.tree.flatten(stack)
  slices = [jax.lax.split(w, [1] * count) for w in leaves]
  return [
    treedef.unflatten([jnp.squeeze(parts[i], 0) for parts in slices])
    for i in range(count)
  ]


def init_boxed(config: ModelConfig, key: jax.Array) -> Params:
  """Initial weights in float32, stacked, each boxed with its logical axes."""
  model = Transformer(replace(config, scan=True))
  packed = pack_rows(np.zeros((1, 2), np.int32))
  return model.init(key, packed, mtp=True)["params"]


@functools.partial(jax.jit, static_argnames="model")
def init(model: Transformer, key: jax.Array) -> Params:
  """Initial weights in float32: a nested dict of arrays, layers stacked."""
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
  """A forward pass over rows of tokens.

  Args:
    model: the architecture.
    params: its weights, stacked or from `unstack`.
    packed: rows of texts. With a cache, each row is one text that continues the
      row of the cache.
    cache: of earlier tokens; None if there are none.
    experts: experts to use instead of the router's choice, for each layer that
      has experts; see `moe.route`. None for the router's choice everywhere.
    mtp: whether to run the MTP blocks.

  Raises ValueError for a cache together with `mtp`.
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
  """Hidden states of the MTP blocks, given `Forward.hidden` of the model."""
  params = unstack(model, params)
  states, _ = model.apply({"params": params}, hidden, packed, method="run_mtp")
  return states


def extend(
  model: Transformer, params: Params, tokens: Int[Array, "B T"], cache: Cache
) -> tuple[Float[Array, "B T D"], Cache]:
  """Hidden states of T more tokens in each row, and the cache with them."""
  result = forward(model, params, pack_rows(tokens), cache=cache)
  return result.hidden, result.cache


def unembed(params: Params) -> Float[Array, "D V"]:
  """The matrix from hidden states to logits; the embedding if it is tied."""
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
  """log p(target) and the entropy, in nats, for targets of hidden states.

  `options` are keyword arguments of `ops.linear_logprobs`.
  """
  return vocab.linear_logprobs(hidden, unembed(params), targets, **options)


def token_logprobs(
  model: Transformer, params: Params, tokens: Ints
) -> Float[Array, "B T"]:
  """log p(tokens[t] | tokens[:t]), in nats; 0 for the first token of a row."""
  hidden = forward(model, params, pack_rows(tokens)).hidden[:, :-1]
  result, _ = logprobs(params, hidden, jnp.asarray(tokens)[:, 1:])
  return jnp.pad(result, ((0, 0), (1, 0)))
