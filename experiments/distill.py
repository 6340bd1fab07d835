r"""Distillation of DeepSeek-R1 to six students, by SFT without RL.

    r1jax train --config=experiments/distill.py:qwen_14b --workdir=runs/qwen \
        --config.model.path=BASE --config.tokenizer.path=BASE \
        --config.dataset.mixture.math.path=FOLDER ...

    r1jax plan --config=experiments/distill.py:qwen_32b --topology=v5p:4x8x8

From the paper (arXiv:2501.12948v2, app. B.4.3): the students and their peak
learning rates, a cosine decay to a tenth of the peak, texts of up to 32,768
tokens, and batches of 64. Two epochs of its 804,745 demonstrations are 25,148
updates. Each domain has its share of these (Table 5), so that every one is read
twice. The demonstrations are not published: the caller sets a folder for each
domain, and one of held-back conversations (`r1jax.data.conversations`).

Ours, because the paper gives no values: AdamW with the pre-training values of
V3, no warm-up, a loss that is the mean over tokens, bfloat16 activations with
float32 master weights, and the mesh.

The students of 1.5B and 7B differ from Qwen2.5-Math, which they start from, as
their released configs do: they have 131,072 positions instead of 4,096, and the
output layer of the 1.5B is not tied to its embedding. `model.path` must hold a
model with these changes.

`distill.py:qwen_1_5b_logits` is ours: half of the loss is the KL from a teacher
with the same tokenizer, at `teacher.path`, such as the student of 32B.

Not run but tiny: `distill.py:tiny` trains a base of `experiments/r1/base.py` on
the samples of `experiments/r1/sft.py:tiny`, on a CPU.
"""

import importlib.resources

from ml_collections import ConfigDict, FieldReference

# Name: (preset, peak learning rate, mesh.fsdp, mesh.tensor)
STUDENTS = {
  "qwen_1_5b": ("r1-distill-qwen-1.5b", 1e-4, 4, 1),
  "qwen_7b": ("r1-distill-qwen-7b", 8e-5, 4, 1),
  "qwen_14b": ("qwen2.5-14b", 7e-5, 8, 1),
  "qwen_32b": ("qwen2.5-32b", 6e-5, 8, 1),
  "llama_8b": ("llama-3.1-8b", 5e-5, 4, 1),
  "llama_70b": ("llama-3.3-70b", 2e-5, 8, 1),
}
# Domain: demonstrations of the paper.
DOMAINS = {
  "math": 395_285,
  "code": 211_129,
  "stem": 10_124,
  "logic": 10_395,
  "general": 177_812,
}
LOGITS = "_logits"  # Ends the variant with a teacher.
VARIANTS = (*STUDENTS, f"qwen_1_5b{LOGITS}", "tiny")


def get_config(variant="qwen_1_5b"):
  """The config of the run; the caller sets the paths."""
  if variant not in VARIANTS:
    raise ValueError(f"unknown variant {variant!r}; there is {VARIANTS}")
  if variant == "tiny":
    return tiny()
  name, rate, fsdp, tensor = STUDENTS[variant.removesuffix(LOGITS)]

  c = ConfigDict()
  c.loop = "sft"
  c.seed = 0
  c.template = "chat"  # That of the tokenizer.
  c.batch_examples = 64
  c.num_steps = 2 * sum(DOMAINS.values()) // c.batch_examples
  c.metrics_every = 10
  c.checkpoint_every = 500

  c.cpu_devices = 1  # Not used on a pod.
  # Few long rows, of which each is split over 8 chips: 64 texts fill them.
  c.mesh = dict(data=-1, fsdp=fsdp, context=8, tensor=tensor)
  c.model = dict(
    name="pretrained", path="", preset_name=name, compute_dtype="bfloat16"
  )
  c.tokenizer = dict(path="")
  part = lambda count: dict(name="conversations", path="", weight=count)
  c.dataset = dict(mixture={k: part(count) for k, count in DOMAINS.items()})
  c.rows = dict(widths=(32_768, 16_384, 8_192, 4_096), shard_rows=1)

  c.aggregation = dict(name="token_mean")
  c.loss = dict(mtp=0.0, balance=0.0)
  c.router_bias_speed = 0.0
  c.offload = ()  # "optimizer" is kept in host memory.
  c.optimizer = dict(
    learning_rate=rate,
    warmup_steps=0,
    decay_steps=c.num_steps,
    final_share=0.1,
    b1=0.9,
    b2=0.95,
    weight_decay=0.1,
    max_grad_norm=1.0,
  )
  c.teacher = dict()  # None.
  if variant.endswith(LOGITS):
    c.loss.distillation = 0.5
    c.teacher = dict(path="", top_k=64)
  c.evaluation = dict(
    every=500, dataset=dict(name="conversations", path=""), examples=512
  )
  return c


def tiny():
  """The config of a tiny student; the caller sets the path of its samples."""
  c = get_config()
  c.template = "r1_zero"
  c.cpu_devices = 4
  c.mesh = dict(data=-1)
  path = FieldReference(str(importlib.resources.files("r1jax") / "base_r1"))
  c.model = dict(name="pretrained", path=path)
  c.tokenizer = dict(path=path)
  requests = dict(split="train", size=2_000, seed=0, thoughts=True)
  c.dataset = dict(
    mixture=dict(
      reasoning=dict(name="conversations", path="", weight=3),
      general=dict(requests, weight=1),
    )
  )
  c.batch_examples, c.num_steps, c.metrics_every = 32, 250, 1
  c.rows = dict(widths=(512,), shard_rows=1)
  c.optimizer.update(learning_rate=1e-3, decay_steps=250)
  c.evaluation = dict(every=0)
  return c
