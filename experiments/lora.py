r"""LoRA: SFT of Qwen2.5-14B that trains half a percent of its parameters.

    r1jax train --config=experiments/lora.py --workdir=runs/lora \
        --config.model.path=BASE --config.tokenizer.path=BASE \
        --config.dataset.path=FOLDER

    r1jax train --config=experiments/lora.py:tiny --workdir=runs/lora

From the paper of LoRA (arXiv:2106.09685): A B is added to frozen matrices, B
begins at 0, and the product is scaled by alpha / rank. Ours: rank 32 with alpha
64, on all projections of attention and of feed-forward layers, ten times the
learning rate of `experiments/distill.py` for this model, and one epoch.

The run leaves the adapter in PEFT's layout (WORKDIR/adapter), and the merged
model (WORKDIR/model). In a config of RL, the same section `model` trains an
adapter; the model under it is then the reference policy.

Not run but tiny: `:tiny` teaches the base of `experiments/r1/base.py` to answer
general requests after a thought, on a CPU.
"""

import importlib.resources

from ml_collections import ConfigDict, FieldReference

VARIANTS = ("qwen_14b", "tiny")


def get_config(variant="qwen_14b"):
  """The config of the run; the caller sets the paths."""
  if variant not in VARIANTS:
    raise ValueError(f"unknown variant {variant!r}; there is {VARIANTS}")
  c = ConfigDict()
  c.loop = "sft"
  c.seed = 0
  c.template = "chat"  # That of the tokenizer.
  c.batch_examples = 64
  c.num_steps = 1_000
  c.metrics_every = 10
  c.checkpoint_every = 100

  c.cpu_devices = 1  # Not used on an accelerator.
  c.mesh = dict(data=-1, fsdp=8)
  path = FieldReference("")
  c.model = dict(
    name="lora",
    path=path,
    rank=32,
    alpha=64.0,
    seed=0,
    dtype="bfloat16",
    compute_dtype="bfloat16",
    preset_name="qwen2.5-14b",
  )
  c.tokenizer = dict(path=path)
  c.dataset = dict(name="conversations", path="")
  c.rows = dict(widths=(16_384, 8_192, 4_096), shard_rows=1)

  c.aggregation = dict(name="token_mean")
  c.loss = dict(mtp=0.0, balance=0.0)
  c.router_bias_speed = 0.0
  c.offload = ()  # "optimizer" is kept in host memory.
  c.optimizer = dict(
    learning_rate=7e-4,
    warmup_steps=30,
    decay_steps=c.num_steps,
    final_share=0.1,
    b1=0.9,
    b2=0.95,
    weight_decay=0.0,
    max_grad_norm=1.0,
  )
  c.teacher = dict()  # None.
  c.evaluation = dict(every=0)
  if variant == "tiny":
    c.template = "r1_zero"
    c.batch_examples, c.num_steps, c.metrics_every = 32, 60, 1
    c.mesh = dict(data=-1)
    path.set(str(importlib.resources.files("r1jax") / "base_r1"))
    c.model = dict(name="lora", path=path, rank=8, alpha=16.0, dtype="float32")
    requests = dict(name="general", seed=0, thoughts=True)
    c.dataset = dict(requests, split="train", size=2_000)
    c.rows = dict(widths=(512,), shard_rows=2)
    c.optimizer.update(learning_rate=1e-2, warmup_steps=5, decay_steps=60)
    c.evaluation = dict(every=20, examples=200)
    c.evaluation.dataset = dict(requests, split="test", size=400)
  return c
