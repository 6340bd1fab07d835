"""Sizes of a model, and the published ones by name."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A DeepSeek-V3 transformer (arXiv:2412.19437, sec. 2).

  Frozen and hashable, so that a module that holds one can be a static argument.
  """

  vocab_size: int  # V
  width: int  # D
  num_layers: int  # L, MTP blocks not counted.
  num_dense_layers: int  # The first layers; the others hold experts.
  num_heads: int  # N
  q_rank: int  # Of the query latent.
  kv_rank: int  # R, of the key/value latent: what the cache holds.
  nope_size: int  # Head size of queries and keys without position.
  rope_size: int  # Head size that carries the position; its key is shared.
  value_size: int
  dense_width: int  # F of the dense feed-forward.
  expert_width: int  # F of one expert.
  num_experts: int  # E, routed.
  num_shared_experts: int
  experts_per_token: int
  routed_scale: float  # Of the routed experts' sum.
  rope_theta: float
  norm_epsilon: float
  mtp_depth: int  # Tokens predicted beyond the next one: 0 or 1.
  init_scale: float  # Standard deviation of the initial weights.

  def __post_init__(self):
    """Refuses sizes that no model can have."""
    if self.rope_size % 2:
      raise ValueError(f"rope_size {self.rope_size} is odd; RoPE turns pairs")
    if not 0 < self.experts_per_token <= self.num_experts:
      raise ValueError(
        f"experts_per_token {self.experts_per_token} is not within "
        f"1..num_experts ({self.num_experts})"
      )
    if not 0 <= self.num_dense_layers <= self.num_layers:
      raise ValueError(
        f"num_dense_layers {self.num_dense_layers} is not within "
        f"0..num_layers ({self.num_layers})"
      )
    if self.mtp_depth not in (0, 1):
      raise ValueError(f"mtp_depth {self.mtp_depth} is neither 0 nor 1")

  @property
  def num_moe_layers(self) -> int:
    """Layers with routed experts."""
    return self.num_layers - self.num_dense_layers

  @property
  def cache_size(self) -> int:
    """Numbers cached per token and layer: the latent and the rotated key."""
    return self.kv_rank + self.rope_size


PRESETS: dict[str, dict] = {
  # A real DeepSeek-V3 in the small: every mechanism, under a million weights.
  "tiny_deepseek": dict(
    vocab_size=512,
    width=128,
    num_layers=4,
    num_dense_layers=1,
    num_heads=4,
    q_rank=64,
    kv_rank=32,
    nope_size=16,
    rope_size=16,
    value_size=32,
    dense_width=256,
    expert_width=32,
    num_experts=8,
    num_shared_experts=1,
    experts_per_token=2,
    routed_scale=2.5,
    rope_theta=10_000.0,
    norm_epsilon=1e-6,
    mtp_depth=1,
    init_scale=0.02,
  ),
}


def preset(name: str, **overrides) -> ModelConfig:
  """The sizes published under `name`, some of them replaced."""
  if name not in PRESETS:
    raise ValueError(
      f"unknown model {name!r}; PRESETS has {', '.join(sorted(PRESETS))}"
    )
  fields = {field.name for field in dataclasses.fields(ModelConfig)}
  for key in overrides.keys() - fields:
    raise ValueError(f"a model has no {key!r}; it has {', '.join(fields)}")
  return ModelConfig(**PRESETS[name] | overrides)
