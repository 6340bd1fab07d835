r"""The reward models of DeepSeek-R1: helpfulness and safety.

    r1jax train --config=experiments/r1/reward_model.py:helpfulness \
        --workdir=runs/r1/helpfulness --config.model.path=MODEL \
        --config.dataset.path=PAIRS --config.evaluation.dataset.path=PAIRS

    r1jax plan --config=experiments/r1/reward_model.py --topology=v5p:8x8x8

From the paper (arXiv:2501.12948v2, sec. 3.1): the architecture of R1 with a
scalar head. Helpfulness learns from 66,000 pairs of responses, and reads their
summaries; safety (`:safety`) from 106,000 responses that are labelled safe or
unsafe, and reads them whole. Batches of 256, learning rate 6e-6, one epoch,
texts of at most 8,192 tokens.

Ours, because the paper gives no values: AdamW with the pre-training values of
V3 without weight decay, a constant rate, no margin, and the mesh. The paper
does not say which checkpoint they start from; MODEL is the one of the SFT.

`:judged` is helpfulness from the answers that a judge has compared in
`experiments/r1/preference_data.py`; a pair differs by more than one slight
verdict.

Not run but tiny: `:tiny` learns pairs of answers to the general requests of
`experiments/r1/base.py`, of which the rule `quality` knows the better one.
"""

import importlib.resources

from ml_collections import ConfigDict, FieldReference

VARIANTS = ("helpfulness", "judged", "safety", "tiny")


def get_config(variant="helpfulness"):
  """The config of the run; the caller sets the paths."""
  if variant not in VARIANTS:
    raise ValueError(f"unknown variant {variant!r}; there is {VARIANTS}")
  c = ConfigDict()
  c.loop = "reward_model"
  c.seed = 0
  c.template = "deepseek_r1"
  c.batch_examples = 256
  c.num_steps = (106_000 if variant == "safety" else 66_000) // 256
  c.metrics_every = 1
  c.checkpoint_every = 50

  c.cpu_devices = 1  # Not used on a pod.
  c.mesh = dict(data=-1, fsdp=2, expert=16, context=4)
  path = FieldReference("")
  c.model = dict(
    name="pretrained",
    path=path,
    preset_name="deepseek_v3",
    compute_dtype="bfloat16",
    how=dict(moe_chunk=2048),
  )
  c.tokenizer = dict(path=path)
  c.dataset = dict(name="preferences", path="")
  if variant == "judged":
    c.dataset = dict(name="judged_pairs", path="", margin=1.0)
  c.rows = dict(widths=(8_192, 4_096, 2_048, 1_024), shard_rows=2)

  c.loss = dict(name="bradley_terry", margin=0.0)
  if variant == "safety":
    c.loss = dict(name="binary_cross_entropy")
  c.offload = ()  # "optimizer" is kept in host memory.
  c.optimizer = dict(
    learning_rate=6e-6,
    warmup_steps=0,
    decay_steps=0,
    final_share=1.0,
    b1=0.9,
    b2=0.95,
    weight_decay=0.0,
    max_grad_norm=1.0,
  )
  c.evaluation = dict(
    every=100, dataset=dict(name="preferences", path=""), examples=1_000
  )
  if variant == "tiny":
    c.template = "r1_zero"
    c.cpu_devices = 4
    c.mesh = dict(data=-1)
    path.set(str(importlib.resources.files("r1jax") / "base_r1"))
    c.model = dict(name="pretrained", path=path)
    pairs = dict(name="pairs", seed=0, fault=0.2)
    c.dataset = dict(pairs, split="train", size=20_000)
    c.batch_examples, c.num_steps = 32, 120
    c.rows = dict(widths=(256,), shard_rows=16)
    c.optimizer.update(learning_rate=1e-3, warmup_steps=10)
    c.evaluation.update(every=60, examples=400)
    c.evaluation.dataset = dict(pairs, split="test", size=1_000)
  return c
