r"""R1-Zero on real input: the file of GSM8K and the tokenizer of DeepSeek-R1.

    python -m r1jax train --config=experiments/gsm8k_zero.py \
        --workdir=runs/gsm8k_zero --config.dataset.path=GSM8K.jsonl \
        --config.tokenizer.path=DIRECTORY

The loop, template and rewards of `demo.py` (arXiv:2501.12948, sec. 2.2) on
grade-school mathematics (arXiv:2110.14168), with the vocabulary of DeepSeek-V3:
129,280 rows, of which the tokenizer uses 128,815; the others are never sampled.
DIRECTORY holds tokenizer.json or tokenizer.json.gz, and tokenizer_config.json.
Nine tenths of the problems are for training, and the rest for evaluation.

The windows fit the longest of the 8,792 problems of GSM8K: 215 tokens, after
the 81 of the template. Everything else is minimal: a tiny model with random
weights, and two rounds of 16 completions of at most 64 tokens.

Expected result: one to two minutes on two CPU cores, with 4 GB of memory. It
learns nothing. Nearly every completion is 64 random tokens that are cut at the
limit and have reward 0, so the advantages and the gradient are 0 too. The run
tests the path from files to updates.
"""

from ml_collections import ConfigDict, FieldReference


def get_config():
  """The config of the run; the caller sets the two paths."""
  c = ConfigDict()
  c.loop = "grpo"
  c.seed = 0
  c.num_steps = 4  # Updates.
  c.template = "r1_zero"

  path = FieldReference("")
  c.cpu_devices = 1  # One copy of the weights; matmuls use all cores.
  c.mesh = dict(data=-1)
  c.rollout_mesh = dict(data=-1)
  c.model = dict(
    name="fresh", preset_name="tiny_deepseek", seed=0, vocab_size=129_280
  )
  c.tokenizer = dict(path="", bos=None)  # BOS as the tokenizer is configured.
  c.dataset = dict(
    name="problems", path=path, domain="math/gsm8k", split="train"
  )
  c.rewards = dict(accuracy=1.0, format=1.0)
  c.grader = dict(num_workers=2, timeout=5.0)

  c.prompts_per_round = 4
  c.group_size = 4  # G
  c.minibatches = 2  # Updates per round.
  c.sampling = dict(
    num_slots=16,
    decode_steps=8,
    prompt_tokens=216,
    max_tokens=64,
    temperature=1.0,
  )
  c.rows = dict(widths=(512,), shard_rows=1)

  c.advantage = dict(name="group_std")
  c.aggregation = dict(name="completion_mean")
  c.loss = dict(
    ratio="token",
    clip=dict(name="symmetric", epsilon=0.2),
    kl="k3",
    kl_coefficient=0.001,
    entropy_coefficient=0.0,
    correction=None,
  )
  c.kl_reward = dict(name="k1", coefficient=0.0)
  c.mask_truncated = False
  c.max_tokens = ()  # `sampling.max_tokens` from the first step on.
  c.dynamic_sampling = dict(rounds=0)
  c.old = "sampler"
  c.mtp = "frozen"
  c.reference_every = 4
  c.router_bias_speed = 0.0
  c.teacher = dict()  # None.
  c.offload = ()  # "optimizer" or "reference" are kept in host memory.
  c.peak_flops = None  # FLOPs per second of a device, for perf/mfu.
  c.optimizer = dict(
    learning_rate=1e-4,
    warmup_steps=0,
    decay_steps=0,
    final_share=1.0,
    b1=0.9,
    b2=0.95,
    weight_decay=0.0,
    max_grad_norm=1.0,
  )
  c.max_skipped = 5
  c.checkpoint_every = 4

  c.evaluation = dict(
    every=4,
    seed=1_000,
    problems=8,
    samples=4,
    problems_between=8,
    samples_between=4,
    test=dict(name="problems", path=path, domain="math/gsm8k", split="test"),
  )
  return c
