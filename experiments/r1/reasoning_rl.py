r"""Reasoning RL from the cold start, with a reward for one language (stage 2).

    r1jax train --config=experiments/r1/reasoning_rl.py --workdir=/data/dev2 \
        --config.model.path=DEV1 --config.dataset.path=PROBLEMS.jsonl

    r1jax plan --config=experiments/r1/reasoning_rl.py --topology=v5p:8x8x8

From the paper (arXiv:2501.12948v2, sec. 3.2.1): the recipe of R1-Zero
(`experiments/r1_zero.py`), with a clip range of 10, completions of at most
32,768 tokens, and one more reward that is added with weight 1: the share of a
thought's words that are in the language of the question. Learning rate 3e-6,
the k3 KL with coefficient 0.001, temperature 1, G = 16, 32 questions per
update, 8,192 outputs per rollout in 16 minibatches, and copying the policy to
the reference policy every 400 steps.

Ours, because the paper gives no values: 2,000 steps (it trains until
convergence), and what `experiments/r1_zero.py` names.

Published result (Table 3): 74.0% on AIME 2024, after 59.0%. The language reward
costs a little accuracy (app. C). Not run but tiny.

`:tiny` trains the model of `experiments/r1/cold_start.py:tiny` on a CPU. Its
learning rate, clip range and sizes are those of `experiments/demo.py`.
"""

import importlib.resources

from ml_collections import ConfigDict, FieldReference

VARIANTS = ("paper", "tiny")
TASKS = dict(
  chain_sum=dict(min_terms=4, max_terms=6, min_digits=1, max_digits=1),
  spell_backward=dict(min_word_len=5, max_word_len=6),
  countdown=dict(
    min_numbers=3,
    max_numbers=3,
    min_value=1,
    max_value=16,
    min_target=1,
    max_target=48,
    operators=("+", "-"),
  ),
)


def get_config(variant="paper"):
  """The config of the run; the caller sets the paths."""
  if variant not in VARIANTS:
    raise ValueError(f"unknown variant {variant!r}; there is {VARIANTS}")
  c = ConfigDict()
  c.loop = "grpo"
  c.seed = 0
  c.num_steps = 2_000  # Updates.
  c.template = "deepseek_r1"

  c.cpu_devices = 1  # Not used on a pod.
  # 32 rows of a microbatch, each split over 16 chips.
  c.mesh = dict(data=-1, fsdp=2, expert=16, context=16)
  c.rollout_mesh = dict(data=-1, expert=256, context=1)
  path = FieldReference("")
  c.model = dict(
    name="pretrained",
    path=path,
    preset_name="deepseek_v3",
    compute_dtype="bfloat16",
    how=dict(moe_chunk=2048),
  )
  c.tokenizer = dict(path=path, bos=None)  # BOS as the tokenizer is configured.
  problems = FieldReference("")
  c.dataset = dict(name="problems", path=problems, split="train")
  c.rewards = dict(accuracy=1.0, thought=1.0, language=1.0)
  c.grader = dict(num_workers=32, timeout=10.0)

  c.prompts_per_round = 512
  c.group_size = 16  # G
  c.minibatches = 16  # Updates per round.
  c.sampling = dict(
    # 4 slots for each of 512 chips; see `experiments/r1_zero.py`.
    num_slots=2_048,
    decode_steps=64,
    prompt_tokens=2_048 - 128,  # The template takes less than 128.
    max_tokens=32_768,
    temperature=1.0,
  )
  # The widest row holds the longest prompt and completion; a chip has a
  # multiple of 64 tokens of any row.
  c.rows = dict(widths=(40_960, 20_480, 10_240, 5_120), shard_rows=1)

  c.advantage = dict(name="group_std")
  c.aggregation = dict(name="completion_mean")
  c.loss = dict(
    ratio="token",
    clip=dict(name="symmetric", epsilon=10.0),
    kl="k3",
    kl_coefficient=0.001,
    entropy_coefficient=0.0,
    correction=None,
  )
  c.kl_reward = dict(name="k1", coefficient=0.0)
  c.mask_truncated = False
  c.max_tokens = ()
  c.dynamic_sampling = dict(rounds=0)
  c.old = "sampler"
  c.mtp = "frozen"
  c.reference_every = 400
  c.router_bias_speed = 0.0
  c.teacher = dict()  # None.
  c.offload = ()  # "optimizer" or "reference" are kept in host memory.
  c.peak_flops = None  # FLOPs per second of a device, for perf/mfu.
  c.optimizer = dict(
    learning_rate=3e-6,
    warmup_steps=0,
    decay_steps=0,
    final_share=1.0,
    b1=0.9,
    b2=0.95,
    weight_decay=0.0,
    max_grad_norm=1.0,
  )
  c.max_skipped = 5
  c.checkpoint_every = 16  # Every round; see `experiments/r1_zero.py`.

  c.evaluation = dict(
    every=400,
    seed=1_000,
    problems=64,
    samples=16,
    problems_between=64,
    samples_between=4,
    test=dict(name="problems", path=problems, split="test"),
  )
  if variant == "tiny":
    c.num_steps = 44
    c.template = "r1_zero"
    c.cpu_devices = 4
    c.mesh = dict(data=-1)
    c.rollout_mesh = dict(data=-1)
    path.set(str(importlib.resources.files("r1jax") / "base_r1"))
    c.model = dict(name="pretrained", path=path)
    tasks = dict(name="bilingual", tasks=TASKS, seed=0)
    c.dataset = dict(tasks, split="train", size=30_000)
    c.grader = dict(num_workers=2, timeout=5.0)
    c.prompts_per_round, c.minibatches = 24, 2
    c.sampling.update(
      num_slots=96, decode_steps=8, prompt_tokens=144, max_tokens=176
    )
    c.rows = dict(widths=(512,), shard_rows=2)
    c.loss.clip.epsilon = 0.2
    c.reference_every = 22
    c.optimizer.update(learning_rate=2e-4, warmup_steps=4)
    c.checkpoint_every = 10
    c.evaluation.update(every=c.num_steps, samples=4)
    c.evaluation.test = dict(tasks, split="test", size=768)
  return c
