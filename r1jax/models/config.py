"""The config of a model: its parts, their sizes, and how it runs."""

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
  q_rank: int | None  # Size of the query latent; None for no query latent.
  kv_rank: int  # R, the size of the key/value latent.
  nope_size: int  # Part of the head size of queries and keys without RoPE.
  rope_size: int  # Part with RoPE, whose key is shared by all heads.
  value_size: int  # Head size of values.

  def __post_init__(self):
    _even("rope_size", self.rope_size)

  @property
  def key_size(self) -> int:
    """The head size of queries and keys."""
    return self.nope_size + self.rope_size

  @property
  def cached(self) -> tuple[tuple[int, int], ...]:
    """(K, H) of the cached array: a latent and a key, shared by all heads."""
    return ((1, self.kv_rank + self.rope_size),)


@dataclasses.dataclass(frozen=True)
class Grouped:
  """Grouped-query attention (arXiv:2305.13245)."""

  num_heads: int  # N
  num_kv_heads: int  # K; each serves N / K query heads.
  head_size: int  # H
  bias: bool  # Whether queries, keys and values have biases, as in Qwen2.

  def __post_init__(self):
    _even("head_size", self.head_size)
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_kv_heads {self.num_kv_heads} does not divide num_heads "
        f"{self.num_heads}"
      )

  @property
  def key_size(self) -> int:
    """The head size of queries and keys."""
    return self.head_size

  @property
  def rope_size(self) -> int:
    """The part of the head size with RoPE: all of it."""
    return self.head_size

  @property
  def cached(self) -> tuple[tuple[int, int], ...]:
    """(K, H) of the two cached arrays: keys, then values."""
    return ((self.num_kv_heads, self.head_size),) * 2


@dataclasses.dataclass(frozen=True)
class Experts:
  """Routed and shared experts (arXiv:2412.19437, sec. 2.1.2)."""

  num_routed: int  # E
  num_shared: int  # Experts that process every token.
  num_dense_layers: int  # Layers at the start of the model without experts.
  per_token: int  # k, the routed experts that each token is sent to.
  width: int  # F of one expert.
  scores: str  # "sigmoid" with a balancing bias (V3), or "softmax" (V2).
  renormalise: bool  # Whether the gates of a token are made to sum to 1.
  scale: float  # Factor of the gates.
  num_groups: int = 1  # Experts are divided into groups, and
  groups_per_token: int = 1  # each token uses experts of its best groups.

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
    """Whether the router adds a load-balancing bias to its scores."""
    return self.scores == "sigmoid"


@dataclasses.dataclass(frozen=True)
class Yarn:
  """RoPE scaled to longer contexts by YaRN (arXiv:2309.00071)."""

  factor: float  # By which the context grew.
  original_length: int  # The context length of pretraining, in tokens.
  # Frequencies that make at least `beta_fast` turns within the original length
  # are kept; those below `beta_slow` turns are divided by `factor`.
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  mscale: float = 1.0  # See `amplitude`.
  mscale_all_dim: float = 0.0  # See `softmax_scale`; 0 for a scale of 1.

  @property
  def softmax_scale(self) -> float:
    """The factor of attention scores."""
    return self._growth(self.mscale_all_dim) ** 2

  @property
  def amplitude(self) -> float:
    """The factor of sines and cosines."""
    return self._growth(self.mscale) / self._growth(self.mscale_all_dim)

  def _growth(self, weight: float) -> float:
    """0.1 weight ln(factor) + 1 (sec. 3.4)."""
    return (
      0.1 * weight * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0
    )


@dataclasses.dataclass(frozen=True)
class Llama3:
  """RoPE scaled to longer contexts as in Llama 3.1."""

  factor: float  # By which the context grew.
  original_length: int  # The context length of pretraining, in tokens.
  # Frequencies that make more than `high` turns within the original length are
  # kept; those below `low` turns are divided by `factor`.
  low: float
  high: float

  softmax_scale = amplitude = 1.0  # As in `Yarn`.


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder-only transformer of the DeepSeek, Qwen2 or Llama family.

  It is hashable, so that modules that hold it can be static arguments of jit.
  Raises ValueError for sizes that do not fit together.
  """

  vocab_size: int  # V
  width: int  # D
  num_layers: int  # L, not counting MTP blocks.
  attention: Latent | Grouped
  dense_width: int  # F of the dense feed-forward layers.
  norm_epsilon: float
  rope_theta: float
  max_length: int  # Context length, in tokens.
  rope_scaling: Yarn | Llama3 | None = None
  tied: bool = False  # Whether the unembedding is the transposed embedding.
  experts: Experts | None = None
  mtp_depth: int = 0  # Tokens predicted beyond the next one.
  init_scale: float = 0.02  # Standard deviation of the initial weights.

  # How it runs. These fields change results by rounding only.
  compute_dtype: Any = "float32"  # Of activations; see `float_name`.
  scan: bool = False  # Whether layers run as a scan, instead of a loop.
  remat: str = "none"  # What the gradient recomputes; see `remat.remat`.
  moe_chunk: int = 8192  # Tokens whose expert buffers a device holds at once.

  def __post_init__(self):
    """Raises ValueError for fields that do not fit together."""
    compute_dtype = float_name(self.compute_dtype, "compute_dtype")
    object.__setattr__(self, "compute_dtype", compute_dtype)
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

  @property
  def num_dense_layers(self) -> int:
    """Number of layers without routed experts, which come first."""
    return self.experts.num_dense_layers if self.experts else self.num_layers

  @property
  def num_moe_layers(self) -> int:
    """Number of layers with routed experts."""
    return self.num_layers - self.num_dense_layers

  @property
  def cache_size(self) -> int:
    """Number of values cached per token and layer."""
    return sum(heads * size for heads, size in self.attention.cached)


_FIELDS = [field.name for field in dataclasses.fields(ModelConfig)]
# The fields that say how a model runs, not what it is.
RUNTIME_FIELDS = tuple(_FIELDS[_FIELDS.index("compute_dtype") :])


def float_name(dtype: Any, name: str = "dtype") -> str:
  """The name of a dtype of parameters or activations.

  Args:
    dtype: anything that `jnp.dtype` accepts: "bfloat16", `jnp.bfloat16`, ...
    name: of the argument, for the error.

  Raises ValueError unless it is one of FLOATS.
  """
  try:
    canonical = jnp.dtype(dtype).name
  except TypeError:
    canonical = None
  if canonical not in FLOATS:
    raise ValueError(f"{name} {dtype!r} is none of {', '.join(FLOATS)}")
  return canonical


def _even(name: str, size: int) -> None:
  if size % 2:
    raise ValueError(f"{name} {size} is odd; RoPE turns pairs")


def replace(config: ModelConfig, **overrides) -> ModelConfig:
  """`config` with some fields replaced.

  A dict replaces fields of a part: `experts=dict(per_token=4)`. Raises
  ValueError for a field that the model or the part does not have.
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
