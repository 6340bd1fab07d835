r"""RL for all scenarios: the last stage of DeepSeek-R1 (stage 5).

    r1jax train --config=experiments/r1/all_scenarios.py --workdir=/data/r1 \
        --config.model.path=DEV3 \
        --config.dataset.mixture.reasoning.path=PROBLEMS.jsonl ...

    r1jax plan --config=experiments/r1/all_scenarios.py --topology=v5p:8x8x8

From the paper (arXiv:2501.12948v2, sec. 3.2.2): most settings of stage 2
(`experiments/r1/reasoning_rl.py`), temperature 0.7, and 1,700 steps. Problems
of reasoning have the rules as rewards; general requests have a reward model and
the format. A request is either one of helpfulness, of which the model reads the
summary alone, or of safety, where it reads the whole completion. The reward for
one language is added to all. General requests enter only in the last 400 steps:
longer training on a reward model lets the policy exploit it.

Ours, because the paper gives no values: the shares of the parts, which are
those of its prompts (80,000 of reasoning, 66,000 and 12,000 general requests,
Table 4), a weight of 0.1 for the reward models, whose scores have no bounds,
and what `experiments/r1_zero.py` names.

Published result (Table 3): AlpacaEval 2.0 rises by 25%, Arena-Hard by 17%;
79.8% on AIME 2024. Not run but tiny.

`:tiny` trains the model of `experiments/r1/sft.py:tiny` on a CPU, with the
reward model of `experiments/r1/reward_model.py:tiny`. Its learning rate is a
quarter of that of stage 2: with the same, and a weight of 0.5 for the reward
model, accuracy and quality fell (LOG.md).
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
  c.num_steps = 1_696  # Updates: the whole rounds of the paper's 1,700.
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
  part = lambda weight, domain, **options: dict(
    name="problems", weight=weight, domain=domain, **options
  )
  late = c.num_steps // 16 - 25  # Round: 400 steps before the end.
  c.dataset = dict(
    mixture=dict(
      reasoning=part(80, "math", path=problems, split="train"),
      helpful=part(66, "helpful", path="", first_round=late),
      harmless=part(12, "harmless", path="", first_round=late),
    )
  )
  both = dict(thought=1.0, language=1.0)
  c.rewards = dict(
    math=dict(both, accuracy=1.0),
    helpful=dict(both, helpfulness=dict(weight=0.1, path="")),
    harmless=dict(both, safety=dict(weight=0.1, path="")),
  )
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
    temperature=0.7,
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
    requests = dict(name="general", split="train", size=2_000, seed=0)
    c.dataset = dict(
      mixture=dict(
        reasoning=dict(tasks, split="train", size=30_000, weight=1),
        general=dict(requests, weight=1, first_round=11),
      )
    )
    c.rewards = dict(
      reasoning_gym=dict(both, accuracy=1.0),
      general=dict(both, helpfulness=dict(weight=0.1, path=""), quality=0.0),
    )
    c.grader = dict(num_workers=2, timeout=5.0)
    c.prompts_per_round, c.minibatches = 24, 2
    c.sampling.update(
      num_slots=96, decode_steps=8, prompt_tokens=144, max_tokens=176
    )
    c.rows = dict(widths=(512,), shard_rows=2)
    c.loss.clip.epsilon = 0.2
    c.reference_every = 22
    c.optimizer.update(learning_rate=5e-5, warmup_steps=4)
    c.checkpoint_every = 10
    c.evaluation.update(every=c.num_steps, samples=4)
    c.evaluation.test = dict(tasks, split="test", size=768)
  return c
