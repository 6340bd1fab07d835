"""Masks and losses of SFT are those of transformers on the same samples."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest
from conversations import conversation

from r1jax import hf
from r1jax.data import templates, tokenizer
from r1jax.data.demonstrations import texts
from r1jax.models import transformer
from r1jax.parallel.mesh import make_mesh
from r1jax.training import sft, sft_batch
from r1jax.types import Example

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [
  pytest.mark.reference,
  pytest.mark.filterwarnings("ignore"),  # Theirs.
]

CHATML = """
{%- for message in messages %}
  {{- '<|im_start|>' + message.role + '\\n' }}
  {%- if message.role == 'assistant' %}
    {%- generation %}{{- message.content + '<|im_end|>' }}{% endgeneration %}
  {%- else %}
    {{- message.content + '<|im_end|>' }}
  {%- endif %}
  {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
CONVERSATIONS = [
  conversation("What is 2 + 2?", "<think>2 + 2</think>4", system="Be brief."),
  conversation("Hi", "Hello!", "And you?", "Fine.\n\nThanks.", "Bye", "Bye"),
  conversation("A conversation between User and Assistant", "x" * 60),
  conversation("a", ""),
]
SIZES = dict(
  vocab_size=512,
  hidden_size=24,
  intermediate_size=28,
  num_hidden_layers=2,
  num_attention_heads=2,
  initializer_range=0.2,
  rope_parameters=dict(rope_type="default", rope_theta=100.0),
)
MODELS = {
  "Qwen2": SIZES | dict(num_key_value_heads=1),
  "DeepseekV3": SIZES
  | dict(
    num_key_value_heads=2,
    moe_intermediate_size=12,
    q_lora_rank=8,
    kv_lora_rank=8,
    qk_nope_head_dim=6,
    qk_rope_head_dim=4,
    v_head_dim=5,
    n_routed_experts=8,
    num_experts_per_tok=2,
    n_shared_experts=1,
    n_group=1,
    topk_group=1,
    first_k_dense_replace=1,
  ),
}


@pytest.fixture(scope="module")
def folder(write_tokenizer, tmp_path_factory):
  """A tokenizer with the special tokens and a template of ChatML."""
  import tokenizers

  folder = write_tokenizer(tmp_path_factory.mktemp("chatml"))
  model = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  model.add_special_tokens(["<|im_start|>", "<|im_end|>"])
  model.save(str(folder / "tokenizer.json"))
  settings = dict(
    eos_token="<|im_end|>",
    pad_token="<|im_end|>",
    chat_template=CHATML,
    tokenizer_class="PreTrainedTokenizerFast",
  )
  (folder / "tokenizer_config.json").write_text(json.dumps(settings))
  return folder


@pytest.fixture(scope="module")
def theirs(folder):
  """Tokens of each conversation, and 1 where transformers learns one."""
  loaded = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
  found = [
    loaded.apply_chat_template(
      messages, return_dict=True, return_assistant_tokens_mask=True
    )
    for messages in CONVERSATIONS
  ]
  return [(x["input_ids"], x["assistant_masks"]) for x in found]


@pytest.fixture(scope="module")
def ours(folder):
  """The texts of each conversation."""
  loaded = tokenizer.load(str(folder))
  template = templates.tokenizer_template(loaded)
  return [
    texts(Example("", "", metadata=dict(messages=x)), template, loaded)
    for x in CONVERSATIONS
  ]


def test_the_tokens_that_are_learned_are_theirs(theirs, ours):
  for (ids, mask), (text,) in zip(theirs, ours, strict=True):
    last = len(text.tokens)
    assert text.tokens.tolist() == ids[:last]
    assert text.weights.tolist() == mask[:last]
    assert not any(mask[last:])  # The line break after the last answer.
    assert mask.count(1) > 0


@pytest.mark.parametrize("family", MODELS)
def test_the_loss_packed_or_not_is_theirs(theirs, ours, family, tmp_path):
  torch.manual_seed(0)
  config = getattr(transformers, f"{family}Config")(
    **MODELS[family], attn_implementation="eager"
  )
  model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
  model.save_pretrained(tmp_path)
  rows, longest = len(theirs), max(len(ids) for ids, _ in theirs)
  ids, attended = (torch.zeros(rows, longest, dtype=int) for _ in range(2))
  labels = torch.full((rows, longest), -100)
  for i, (tokens, mask) in enumerate(theirs):
    size, learned = len(tokens), torch.tensor(mask, dtype=bool)
    ids[i, :size], attended[i, :size] = torch.tensor(tokens), 1
    labels[i, :size][learned] = ids[i, :size][learned]
  with torch.no_grad():
    expected = float(
      model(ids, attention_mask=attended, labels=labels, use_cache=False).loss
    )
  sizes, params = hf.load(tmp_path)
  params = jax.tree.map(jnp.asarray, params)
  objective = jax.jit(
    functools.partial(
      sft.objective,
      transformer.Transformer(sizes),
      sizes.vocab_size,
      mtp=0,
      balance=0,
    )
  )
  items = [text for found in ours for text in found]
  for widths, shard_rows in (((320,), 1), ((160,), 1), ((160,), len(items))):
    batches = sft_batch.make_batches(
      make_mesh(data=1),
      items,
      dict(name="token_mean"),
      widths=widths,
      shard_rows=shard_rows,
    )
    loss = sum(float(objective(params, x)[1]["loss/nll"]) for x in batches)
    assert loss == pytest.approx(expected, rel=2e-5)
