"""Our models against those of transformers, with the same weights.

Float32, random weights, odd sizes. Logits agree to 1e-4 of their scale, so do
gradients, and greedy decoding through either cache goes the same way.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import hf
from r1jax.models import cache as caches
from r1jax.models import transformer
from r1jax.models.weights import is_router_bias

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [
  pytest.mark.reference,
  pytest.mark.filterwarnings("ignore"),  # Theirs.
]

YARN = dict(
  rope_type="yarn",
  rope_theta=100.0,
  factor=4.0,
  original_max_position_embeddings=16,
  beta_fast=8,
  beta_slow=1,
)
PLAIN = dict(rope_type="default", rope_theta=100.0)
LLAMA3 = dict(
  rope_type="llama3",
  rope_theta=500.0,
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=32,
)
COMMON = dict(
  vocab_size=67,
  num_hidden_layers=4,
  initializer_range=0.15,
  max_position_embeddings=256,
  bos_token_id=0,
  eos_token_id=1,
)
LATENT = COMMON | dict(
  hidden_size=36,
  intermediate_size=44,
  moe_intermediate_size=14,
  num_attention_heads=3,
  num_key_value_heads=3,
  kv_lora_rank=10,
  qk_nope_head_dim=6,
  qk_rope_head_dim=8,
  v_head_dim=7,
  n_routed_experts=12,
  num_experts_per_tok=3,
)
V3 = LATENT | dict(
  q_lora_rank=13,
  n_shared_experts=1,
  n_group=1,
  topk_group=1,
  first_k_dense_replace=1,
  routed_scaling_factor=2.5,
  norm_topk_prob=True,
  num_nextn_predict_layers=0,
  rope_parameters=PLAIN,
)
V2 = LATENT | dict(
  q_lora_rank=None,
  n_shared_experts=2,
  n_group=1,
  topk_group=1,
  topk_method="greedy",
  first_k_dense_replace=1,
  routed_scaling_factor=1.0,
  norm_topk_prob=False,
  rope_parameters=PLAIN,
)
DENSE = COMMON | dict(
  hidden_size=40,
  intermediate_size=52,
  num_attention_heads=4,
  num_key_value_heads=2,
  rope_parameters=PLAIN,
)
GROUPED = dict(n_group=4, topk_group=2)
CASES = {
  "v3": ("DeepseekV3", V3),
  "v3-groups": ("DeepseekV3", V3 | GROUPED),
  "v3-yarn": (
    "DeepseekV3",
    V3 | dict(rope_parameters=YARN | dict(mscale=1.0, mscale_all_dim=1.0)),
  ),
  "v3-yarn-groups-3-dense-tied": (
    "DeepseekV3",
    V3
    | GROUPED
    | dict(
      rope_parameters=YARN | dict(mscale=1.0, mscale_all_dim=0.7),
      first_k_dense_replace=3,
      tie_word_embeddings=True,
    ),
  ),
  "v3-moonlight": (
    "DeepseekV3",
    V3 | dict(q_lora_rank=None, rms_norm_eps=1e-3, routed_scaling_factor=2.446),
  ),
  "v2": ("DeepseekV2", V2),
  "v2-groups-yarn-3-dense": (
    "DeepseekV2",
    V2
    | GROUPED
    | dict(
      q_lora_rank=9,
      topk_method="group_limited_greedy",
      routed_scaling_factor=16.0,
      first_k_dense_replace=3,
      rope_parameters=YARN | dict(mscale=0.707, mscale_all_dim=0.707),
    ),
  ),
  "qwen2": ("Qwen2", DENSE),
  "qwen2-tied": (
    "Qwen2",
    DENSE | dict(tie_word_embeddings=True, num_key_value_heads=4),
  ),
  "llama": ("Llama", DENSE),
  "llama3-tied": (
    "Llama",
    DENSE
    | dict(
      rope_parameters=LLAMA3,
      tie_word_embeddings=True,
      head_dim=6,
      num_key_value_heads=1,
    ),
  ),
}
TOKENS = np.random.default_rng(0).integers(0, 67, (3, 41), np.int32)


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
  """The module of transformers, and our model and parameters loaded from it."""
  family, settings = CASES[request.param]
  torch.manual_seed(0)
  config = getattr(transformers, f"{family}Config")(
    **settings, attn_implementation="eager", experts_implementation="eager"
  )
  theirs = getattr(transformers, f"{family}ForCausalLM")(config).eval()
  with torch.no_grad():
    for name, tensor in [*theirs.named_parameters(), *theirs.named_buffers()]:
      if name.endswith("norm.weight"):
        tensor.uniform_(0.5, 1.5)
      elif name.endswith(("bias", "gate.weight")):
        tensor.normal_(0, 0.3)
  folder = tmp_path_factory.mktemp(request.param)
  theirs.save_pretrained(folder)
  ours, params = hf.load(folder)
  return (
    theirs,
    transformer.Transformer(ours),
    jax.tree.map(jnp.asarray, params),
  )


def logits_of(model, params, tokens):
  packed = transformer.pack_rows(tokens)
  hidden = transformer.forward(model, params, packed).hidden
  return transformer.logits(params, hidden)


def test_logits_agree(pair):
  theirs, model, params = pair
  with torch.inference_mode():
    expected = theirs(torch.from_numpy(np.int64(TOKENS))).logits.numpy()
  got = jax.jit(functools.partial(logits_of, model))(params, TOKENS)
  scale = np.abs(expected).max()
  assert scale > 1
  assert np.abs(got - expected).max() <= 1e-4 * scale


def test_gradients_agree(pair, tmp_path):
  """Their gradients are saved and loaded like weights, to compare trees."""
  theirs, model, params = pair
  batch = torch.from_numpy(np.int64(TOKENS))
  theirs.zero_grad()
  theirs(batch, labels=batch).loss.backward()
  copy = type(theirs)(theirs.config)
  with torch.no_grad():
    for (_, of), (_, tensor) in zip(
      theirs.named_parameters(), copy.named_parameters()
    ):
      tensor.copy_(0 if of.grad is None else of.grad)
    for buffer in copy.buffers():
      buffer.zero_()
  copy.save_pretrained(tmp_path)
  _, expected = hf.load(tmp_path)

  @jax.jit
  @jax.grad
  def gradient(params):
    return -transformer.token_logprobs(model, params, TOKENS)[:, 1:].mean()

  got = gradient(params)
  scale = max(np.abs(x).max() for x in jax.tree.leaves(expected))
  for (path, one), other in zip(
    jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True
  ):
    if not is_router_bias(path):
      error = np.abs(one - other).max()
      assert error <= 1e-4 * scale, (path, error, scale)


def test_greedy_decoding_goes_the_same_way(pair):
  """For 64 tokens, except where the two best logits are nearly equal."""
  theirs, model, params = pair
  count, prompt = 64, TOKENS[:, :9]
  extend = jax.jit(functools.partial(transformer.extend, model))
  cache = caches.empty(model.config, len(prompt), prompt.shape[1] + count)
  their_cache, token, decided = transformers.DynamicCache(), prompt, 0
  for _ in range(count):
    hidden, cache = extend(params, jnp.asarray(token, jnp.int32), cache)
    ours = np.asarray(transformer.logits(params, hidden[:, -1]))
    with torch.inference_mode():
      expected = theirs(
        torch.from_numpy(np.int64(token)),
        past_key_values=their_cache,
        use_cache=True,
      ).logits[:, -1]
    expected = expected.numpy()
    scale = np.abs(expected).max()
    assert np.abs(ours - expected).max() <= 1e-4 * scale
    best = np.sort(expected, axis=-1)
    clear = best[:, -1] - best[:, -2] >= 1e-4 * scale
    decided += clear.sum()
    np.testing.assert_array_equal(
      ours.argmax(-1)[clear], expected.argmax(-1)[clear]
    )
    token = expected.argmax(-1)[:, None]
  assert decided > 0.9 * count * len(prompt)
