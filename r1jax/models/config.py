"""What a model is: its parts, their sizes, and how they run."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

FLOATS = ("float32", "bfloat16", "float16")  # Of weights and activations.


@dataclasses.dataclass(frozen=True)
class Latent:
  """Multi-head latent attention (arXiv:2405.04434, sec. 2.1)."""

  num_heads: int  # N
  q_rank: int | None  # Of the query latent; None makes queries from x itself.
  kv_rank: int  # R, of the key/value latent: what the cache holds.
  nope_size: int  # Head size of queries and keys without position.
  rope_size: int  # Head size that carries the position; its key is shared.
  value_size: int

  def __post_init__(self):
    _even("rope_size", self.rope_size)

  @property
  def key_size(self) -> int:
    """Numbers in a query and in a key of one head."""
    return self.nope_size + self.rope_size

  @property
  def cached(self) -> tuple[tuple[int, int], ...]:
    """(K, H) of every array that caches a token: one latent for all heads."""
    return ((1, self.kv_rank + self.rope_size),)


@dataclasses.dataclass(frozen=True)
class Grouped:
  """Grouped-query attention (arXiv:2305.13245)."""

  num_heads: int  # N
  num_kv_heads: int  # K; each serves N / K queries.
  head_size: int  # H
  bias: bool  # Of queries, keys and values: Qwen2 has it.

  def __post_init__(self):
    _even("head_size", self.head_size)
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_kv_heads {self.num_kv_heads} does not divide num_heads "
        f"{self.num_heads}"
      )

  @property
  def rope_size(self) -> int:
    """Head size that carries the position: all of it."""
    return self.head_size

  @property
  def cached(self) -> tuple[tuple[int, int], ...]:
    """(K, H) of every array that caches a token: keys, then values."""
    return ((self.num_kv_heads, self.head_size),) * 2


@dataclasses.dataclass(frozen=True)
class Experts:
  """Routed and shared experts (arXiv:2412.19437, sec. 2.1.2)."""

  num_routed: int  # E
  num_shared: int
  num_dense_layers: int  # The first of the model; the others hold experts.
  per_token: int  # Routed experts that work on one token.
  width: int  # F of one expert.
  scores: str  # "sigmoid" with a balancing bias (V3), or "softmax" (V2).
  renormalise: bool  # The scores of the chosen are made to sum to 1.
  scale: float  # Of the routed experts' sum.
  num_groups: int = 1
  groups_per_token: int = 1  # Experts are chosen within the best groups.

  def __post_init__(self):
    if self.scores not in ("sigmoid", "softmax"):
      raise ValueError(
        f"scores {self.scores!r} is neither 'sigmoid' nor 'softmax'"
      )
    if self.num_routed % self.num_groups:
      raise ValueError(
        f"num_groups {self.num_groups} does not divide num_routed "
        f"{self.num_routed}"
      )
    if not 0 < self.groups_per_token <= self.num_groups:
      raise ValueError(
        f"groups_per_token {self.groups_per_token} is not within "
        f"1..num_groups ({self.num_groups})"
      )
    eligible = self.num_routed // self.num_groups * self.groups_per_token
    if not 0 < self.per_token <= eligible:
      raise ValueError(
        f"per_token {self.per_token} is not within 1..{eligible}, the routed "
        "experts of a token's groups"
      )

  @property
  def biased(self) -> bool:
    """Whether a bias, moved against the load, takes part in the choice."""
    return self.scores == "sigmoid"


@dataclasses.dataclass(frozen=True)
class Yarn:
  """RoPE for longer texts by YaRN (arXiv:2309.00071)."""

  factor: float  # By which the window grew.
  original_length: int
  beta_fast: float = 32.0  # Turns within the original window: kept from here,
  beta_slow: float = 1.0  # slowed by `factor` below this.
  mscale: float = 1.0
  mscale_all_dim: float = 0.0  # Of the softmax's scale; 0 leaves it alone.

  @property
  def softmax_scale(self) -> float:
    """What the scores of attention are multiplied by."""
    return self._growth(self.mscale_all_dim) ** 2

  @property
  def amplitude(self) -> float:
    """What sines and cosines are multiplied by."""
    return self._growth(self.mscale) / self._growth(self.mscale_all_dim)

  def _growth(self, weight: float) -> float:
    return (
      0.1 * weight * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0
    )


@dataclasses.dataclass(frozen=True)
class Llama3:
  """RoPE for longer texts as Llama 3.1 does it."""

  factor: float
  original_length: int
  low: float  # Turns within the original window: slowed by `factor` below,
  high: float  # kept above.

  softmax_scale = amplitude = 1.0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder-only transformer of the DeepSeek, Qwen2 or Llama family.

  Frozen and hashable, so that a module that holds one can be a static argument.
  """

  vocab_size: int  # V
  width: int  # D
  num_layers: int  # L, MTP blocks not counted.
  attention: Latent | Grouped
  dense_width: int  # F of the dense feed-forward.
  norm_epsilon: float
  rope_theta: float
  max_length: int  # Tokens of the longest text it was made for.
  rope_scaling: Yarn | Llama3 | None = None
  tied: bool = False  # The embedding is the unembedding too.
  experts: Experts | None = None
  mtp_depth: int = 0  # Tokens predicted beyond the next one.
  init_scale: float = 0.02  # Standard deviation of the initial weights.

  # How it runs: none of this changes what is computed, but for rounding. A
  # dtype is given as `jnp.dtype` takes it, and kept as its name.
  compute_dtype: Any = "float32"  # Of activations and matmuls.
  logits_dtype: Any = "float32"
  scan: bool = False  # Depth by a scan; else a loop.
  remat: str = "none"  # What the gradient makes again; see `remat`.
  moe_chunk: int = 8192  # Tokens of a device whose experts' buffers exist.
  moe_exchange: str = "ring"  # Or "all_to_all", "ragged": see `exchange`.
  # Of all_to_all's buffers, over an even spread: what does not fit is dropped,
  # and this does change what is computed. None drops nothing.
  moe_capacity: float | None = None

  def __post_init__(self):
    """Refuses sizes that no model can have."""
    for name in ("compute_dtype", "logits_dtype"):
      value = float_name(getattr(self, name), name)
      object.__setattr__(self, name, value)
    if not 0 <= self.num_dense_layers <= self.num_layers:
      raise ValueError(
        f"num_dense_layers {self.num_dense_layers} is not within "
        f"0..num_layers ({self.num_layers})"
      )
    if self.mtp_depth < 0:
      raise ValueError(f"mtp_depth {self.mtp_depth} is below 0")
    if self.moe_chunk < 1:
      raise ValueError(f"moe_chunk {self.moe_chunk} is below 1")
    if self.remat not in ("none", "block", "attention", "host"):
      raise ValueError(
        f"remat {self.remat!r} is none of 'none', 'block', 'attention' and "
        "'host'"
      )
    if self.moe_exchange not in ("ring", "all_to_all", "ragged"):
      raise ValueError(
        f"moe_exchange {self.moe_exchange!r} is none of 'ring', 'all_to_all' "
        "and 'ragged'"
      )
    if self.moe_capacity is not None:
      if self.moe_exchange != "all_to_all":
        raise ValueError(
          f"moe_exchange {self.moe_exchange!r} drops nothing; moe_capacity "
          f"{self.moe_capacity} is for 'all_to_all'"
        )
      if self.moe_capacity <= 0:
        raise ValueError(f"moe_capacity {self.moe_capacity} is not above 0")

  @property
  def num_dense_layers(self) -> int:
    """Layers without routed experts: the first."""
    return self.experts.num_dense_layers if self.experts else self.num_layers

  @property
  def num_moe_layers(self) -> int:
    """Layers with routed experts."""
    return self.num_layers - self.num_dense_layers

  @property
  def cache_size(self) -> int:
    """Numbers cached per token and layer."""
    return sum(heads * size for heads, size in self.attention.cached)


_FIELDS = [field.name for field in dataclasses.fields(ModelConfig)]
# The fields that say how a model runs, not what it is.
HOW = tuple(_FIELDS[_FIELDS.index("compute_dtype") :])


def float_name(dtype: Any, name: str = "dtype") -> str:
  """The name of a dtype of parameters or activations.

  Args:
    dtype: whatever `jnp.dtype` takes: "bfloat16", `jnp.bfloat16`, ...
    name: of the argument, for the message.

  Raises ValueError unless it is one of FLOATS.
  """
  try:
    found = jnp.dtype(dtype).name
  except TypeError:
    found = None
  if found not in FLOATS:
    raise ValueError(f"{name} {dtype!r} is none of {', '.join(FLOATS)}")
  return found


def _even(name: str, size: int) -> None:
  if size % 2:
    raise ValueError(f"{name} {size} is odd; RoPE turns pairs")


def replace(config: ModelConfig, **overrides) -> ModelConfig:
  """`config` with some fields replaced; a dict replaces fields of a part.

  Raises ValueError for a field that a model does not have.
  """
  return _replace(config, overrides, "a model")


def _replace(part, overrides, owner: str):
  fields = [field.name for field in dataclasses.fields(part)]
  values = {}
  for key, value in overrides.items():
    if key not in fields:
      raise ValueError(f"{owner} has no {key!r}; it has {', '.join(fields)}")
    old = getattr(part, key)
    if isinstance(value, dict) and not dataclasses.is_dataclass(old):
      raise ValueError(f"{owner} has no {key} whose fields could be replaced")
    if dataclasses.is_dataclass(old) and isinstance(value, Iterable):
      value = _replace(old, dict(value), key)
    values[key] = value
  return dataclasses.replace(part, **values)
