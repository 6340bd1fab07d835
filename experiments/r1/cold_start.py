r"""The cold start: SFT of the base on few, readable thoughts (stage 1).

    r1jax train --config=experiments/r1/cold_start.py --workdir=runs/r1/dev1 \
        --config.model.path=BASE --config.tokenizer.path=BASE \
        --config.dataset.path=runs/r1/cold_start_data/kept

From the paper (arXiv:2501.12948v2, sec. 3 and app. B.4.2): it trains
DeepSeek-V3-Base on thousands of samples, for two to three epochs in batches of
128, with a rate that falls from 5e-5 to 5e-6 along a cosine, and texts of up to
32,768 tokens. `experiments/r1/cold_start_data.py` makes the samples.

Ours, because the paper gives no values: two epochs of 8,000 samples, AdamW with
the pre-training values of V3, no warm-up, a loss that is the mean over tokens,
the losses of V3's pre-training for its MTP blocks and for balance, and the
mesh.

Published result (Table 3): language and format become readable, and reasoning
is weaker than R1-Zero's: 59.0% instead of 77.9% on AIME 2024. Not run but tiny.

`:tiny` trains the base of `experiments/r1/base.py` on a CPU.
"""

import importlib.resources

from ml_collections import ConfigDict, FieldReference

VARIANTS = ("paper", "tiny")


def get_config(variant="paper"):
  """The config of the run; the caller sets the paths."""
  if variant not in VARIANTS:
    raise ValueError(f"unknown variant {variant!r}; there is {VARIANTS}")
  c = ConfigDict()
  c.loop = "sft"
  c.seed = 0
  c.template = "deepseek_r1"
  c.batch_examples = 128
  c.num_steps = 2 * 8_000 // c.batch_examples
  c.metrics_every = 1
  c.checkpoint_every = 50

  c.cpu_devices = 1  # Not used on a pod.
  # 32 rows of a microbatch, each split over 16 chips.
  c.mesh = dict(data=-1, fsdp=2, expert=16, context=16)
  path = FieldReference("")
  c.model = dict(
    name="pretrained",
    path=path,
    preset_name="deepseek_v3",
    compute_dtype="bfloat16",
    how=dict(moe_chunk=2048),
  )
  c.tokenizer = dict(path=path)
  c.dataset = dict(name="conversations", path="")
  c.rows = dict(widths=(32_768, 16_384, 8_192), shard_rows=1)

  c.aggregation = dict(name="token_mean")
  c.loss = dict(mtp=0.1, balance=1e-4)
  c.router_bias_speed = 0.001
  c.offload = ()  # "optimizer" is kept in host memory.
  c.optimizer = dict(
    learning_rate=5e-5,
    warmup_steps=0,
    decay_steps=c.num_steps,
    final_share=0.1,
    b1=0.9,
    b2=0.95,
    weight_decay=0.1,
    max_grad_norm=1.0,
  )
  c.teacher = dict()  # None.
  c.evaluation = dict(every=0)
  if variant == "tiny":
    c.template = "r1_zero"
    c.cpu_devices = 4
    c.mesh = dict(data=-1)
    path.set(str(importlib.resources.files("r1jax") / "base_r1"))
    c.model = dict(name="pretrained", path=path)
    c.batch_examples, c.num_steps = 32, 150
    c.rows = dict(widths=(512,), shard_rows=1)
    c.optimizer.update(learning_rate=5e-4, decay_steps=150)
  return c
