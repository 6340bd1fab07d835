r"""The SFT on 800,000 samples (stage 4), from the base anew.

    r1jax train --config=experiments/r1/sft.py --workdir=runs/r1/dev3 \
        --config.model.path=BASE --config.tokenizer.path=BASE \
        --config.dataset.mixture.reasoning.path=runs/r1/samples/kept \
        --config.dataset.mixture.general.path=FOLDER

    r1jax plan --config=experiments/r1/sft.py --topology=v5p:8x8x8

From the paper (arXiv:2501.12948v2, sec. 3, app. B.3.3 and B.4.2): it begins
again from DeepSeek-V3-Base, with 804,745 samples (Table 5): about 600,000 of
reasoning, which `experiments/r1/rejection_sampling.py` makes, and about 200,000
others: writing, questions of facts, the model itself, translation, repair of
programs. Of these, a sample has a thought where that helps, and none where the
request is trivial. Two to three epochs in batches of 128; a rate that falls
from 5e-5 to 5e-6 along a cosine; texts of up to 32,768 tokens.

Ours, because the paper gives no values: two epochs, AdamW with the pre-training
values of V3, no warm-up, a loss that is the mean over tokens, the losses of
V3's pre-training for its MTP blocks and for balance, and the mesh. Both parts
have their share of the samples, so that every one is read twice.

Published result (Table 3): 78.1% on AIME 2024. Not run but tiny.

`:tiny` trains the base of `experiments/r1/base.py` on a CPU: three quarters are
samples of reasoning, one quarter answers to general requests.
"""

import importlib.resources

from ml_collections import ConfigDict, FieldReference

VARIANTS = ("paper", "tiny")
# Samples of the paper: mathematics, code, STEM and logic; and others.
SAMPLES = dict(reasoning=395_285 + 211_129 + 10_124 + 10_395, general=177_812)


def get_config(variant="paper"):
  """The config of the run; the caller sets the paths."""
  if variant not in VARIANTS:
    raise ValueError(f"unknown variant {variant!r}; there is {VARIANTS}")
  c = ConfigDict()
  c.loop = "sft"
  c.seed = 0
  c.template = "deepseek_r1"
  c.batch_examples = 128
  c.num_steps = 2 * sum(SAMPLES.values()) // c.batch_examples
  c.metrics_every = 10
  c.checkpoint_every = 200

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
  part = lambda count: dict(name="conversations", path="", weight=count)
  c.dataset = dict(mixture={k: part(count) for k, count in SAMPLES.items()})
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
    requests = dict(split="train", size=2_000, seed=0, thoughts=True)
    c.dataset = dict(
      mixture=dict(
        reasoning=dict(name="conversations", path="", weight=3),
        general=dict(requests, weight=1),
      )
    )
    c.batch_examples, c.num_steps = 32, 250
    c.rows = dict(widths=(512,), shard_rows=1)
    c.optimizer.update(learning_rate=5e-4, decay_steps=250)
  return c
