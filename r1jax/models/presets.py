"""Configs of published models by name, and of a tiny model of each family."""

from r1jax.config import unknown
from r1jax.models.config import (
  Experts,
  Grouped,
  Latent,
  Llama3,
  ModelConfig,
  Yarn,
  replace,
)

# arXiv:2412.19437, sec. 4.2, and the released config.json.
DEEPSEEK_V3 = ModelConfig(
  vocab_size=129_280,
  width=7168,
  num_layers=61,
  attention=Latent(
    num_heads=128,
    q_rank=1536,
    kv_rank=512,
    nope_size=128,
    rope_size=64,
    value_size=128,
  ),
  dense_width=18_432,
  experts=Experts(
    num_routed=256,
    num_shared=1,
    num_dense_layers=3,
    per_token=8,
    width=2048,
    scores="sigmoid",
    renormalise=True,
    scale=2.5,
    num_groups=8,
    groups_per_token=4,
  ),
  norm_epsilon=1e-6,
  rope_theta=10_000.0,
  rope_scaling=Yarn(
    factor=40.0, original_length=4096, mscale=1.0, mscale_all_dim=1.0
  ),
  max_length=163_840,
  mtp_depth=1,
  scan=True,
  remat="block",
)

# arXiv:2405.04434, app. B, and the released config.json.
DEEPSEEK_V2_LITE = ModelConfig(
  vocab_size=102_400,
  width=2048,
  num_layers=27,
  attention=Latent(
    num_heads=16,
    q_rank=None,
    kv_rank=512,
    nope_size=128,
    rope_size=64,
    value_size=128,
  ),
  dense_width=10_944,
  experts=Experts(
    num_routed=64,
    num_shared=2,
    num_dense_layers=1,
    per_token=6,
    width=1408,
    scores="softmax",
    renormalise=False,
    scale=1.0,
  ),
  norm_epsilon=1e-6,
  rope_theta=10_000.0,
  rope_scaling=Yarn(
    factor=40.0, original_length=4096, mscale=0.707, mscale_all_dim=0.707
  ),
  max_length=163_840,
  scan=True,
  remat="block",
)

MOONLIGHT_16B = replace(
  DEEPSEEK_V2_LITE,
  vocab_size=163_840,
  dense_width=11_264,
  experts=dict(scores="sigmoid", renormalise=True, scale=2.446),
  norm_epsilon=1e-5,
  rope_theta=50_000.0,
  rope_scaling=None,
  max_length=8192,
)


def _qwen2(layers, width, heads, kv_heads, hidden, vocab, **settings):
  """Qwen2.5 (arXiv:2412.15115); heads of 128, biases on q, k and v."""
  return ModelConfig(
    vocab_size=vocab,
    width=width,
    num_layers=layers,
    attention=Grouped(
      num_heads=heads, num_kv_heads=kv_heads, head_size=128, bias=True
    ),
    dense_width=hidden,
    scan=True,
    remat="block",
    **settings,
  )


def _llama3(layers, width, heads, hidden):
  """Llama 3.1 and 3.3 (arXiv:2407.21783)."""
  return ModelConfig(
    vocab_size=128_256,
    width=width,
    num_layers=layers,
    attention=Grouped(
      num_heads=heads, num_kv_heads=8, head_size=128, bias=False
    ),
    dense_width=hidden,
    norm_epsilon=1e-5,
    rope_theta=500_000.0,
    rope_scaling=Llama3(factor=8.0, original_length=8192, low=1.0, high=4.0),
    max_length=131_072,
    scan=True,
    remat="block",
  )


_MATH = dict(norm_epsilon=1e-6, rope_theta=10_000.0, max_length=4096)
_BASE = dict(norm_epsilon=1e-5, rope_theta=1_000_000.0, max_length=131_072)
QWEN_MATH_1_5B = _qwen2(28, 1536, 12, 2, 8960, 151_936, tied=True, **_MATH)
QWEN_MATH_7B = _qwen2(28, 3584, 28, 4, 18_944, 152_064, **_MATH)

# DeepSeek-V3 with all its mechanisms and less than a million parameters.
TINY_DEEPSEEK = ModelConfig(
  vocab_size=512,
  width=128,
  num_layers=4,
  attention=Latent(
    num_heads=4,
    q_rank=64,
    kv_rank=32,
    nope_size=16,
    rope_size=16,
    value_size=32,
  ),
  dense_width=256,
  experts=Experts(
    num_routed=8,
    num_shared=1,
    num_dense_layers=1,
    per_token=2,
    width=32,
    scores="sigmoid",
    renormalise=True,
    scale=2.5,
  ),
  norm_epsilon=1e-6,
  rope_theta=10_000.0,
  max_length=4096,
  mtp_depth=1,
)
_TINY_DENSE = ModelConfig(
  vocab_size=512,
  width=128,
  num_layers=4,
  attention=Grouped(num_heads=4, num_kv_heads=2, head_size=32, bias=True),
  dense_width=384,
  norm_epsilon=1e-6,
  rope_theta=10_000.0,
  max_length=4096,
  tied=True,
)

PRESETS: dict[str, ModelConfig] = {
  "deepseek_v3": DEEPSEEK_V3,  # R1 and R1-Zero have the same architecture.
  "deepseek_v2_lite": DEEPSEEK_V2_LITE,
  "moonlight_16b": MOONLIGHT_16B,
  "qwen2.5-math-1.5b": QWEN_MATH_1_5B,
  "qwen2.5-math-7b": QWEN_MATH_7B,
  "qwen2.5-14b": _qwen2(48, 5120, 40, 8, 13_824, 152_064, **_BASE),
  "qwen2.5-32b": _qwen2(64, 5120, 40, 8, 27_648, 152_064, **_BASE),
  "llama-3.1-8b": _llama3(32, 4096, 32, 14_336),
  "llama-3.3-70b": _llama3(80, 8192, 64, 28_672),
  # The other distilled models have the config of the model they start from.
  "r1-distill-qwen-1.5b": replace(
    QWEN_MATH_1_5B, tied=False, max_length=131_072
  ),
  "r1-distill-qwen-7b": replace(QWEN_MATH_7B, max_length=131_072),
  "tiny_deepseek": TINY_DEEPSEEK,
  "tiny_deepseek_v2": replace(
    TINY_DEEPSEEK,
    attention=dict(q_rank=None),
    experts=dict(
      scores="softmax",
      renormalise=False,
      scale=1.0,
      num_groups=4,
      groups_per_token=2,
    ),
    rope_scaling=Yarn(
      factor=4.0, original_length=1024, mscale=0.707, mscale_all_dim=0.707
    ),
    mtp_depth=0,
  ),
  "tiny_qwen2": _TINY_DENSE,
  "tiny_llama": replace(
    _TINY_DENSE,
    attention=dict(bias=False),
    rope_theta=500_000.0,
    rope_scaling=Llama3(factor=8.0, original_length=512, low=1.0, high=4.0),
    tied=False,
  ),
}


def preset(name: str, **overrides) -> ModelConfig:
  """The config of the model `name`, with some fields replaced.

  A dict replaces fields of a part: `experts=dict(num_routed=16)`. Raises
  ValueError for a model or a field that does not exist.
  """
  if name not in PRESETS:
    raise ValueError(unknown("model", name, PRESETS))
  return replace(PRESETS[name], **overrides)
