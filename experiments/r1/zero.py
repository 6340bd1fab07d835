r"""R1-Zero on a base that knows two languages; `experiments/r1_zero.py`, tiny.

    python -m r1jax train --config=experiments/r1/zero.py --workdir=runs/r1_zero

Pure reinforcement learning from a base model (arXiv:2501.12948, sec. 2.2), with
the template of the paper and accuracy and format rewards of equal weight, as in
`experiments/demo.py`, whose settings these are. The base is that of
`experiments/r1/base.py`, and the problems are in English and Chinese, half of
them in each. Nothing rewards thoughts in one language: the reward `language`
has weight 0 and is only measured. `--config.model.path` chooses another base,
as of a student that is trained by RL alone.

Expected result: accuracy rises as in the demo, while the language consistency
stays where the base has it, between 0.5 and 0.95; not run yet.
"""

import importlib.resources

from ml_collections import ConfigDict, FieldReference


def get_config():
  """The config of the run."""
  base = FieldReference(str(importlib.resources.files("r1jax") / "base_r1"))
  tasks = dict(
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
  larger = dict(
    chain_sum=tasks["chain_sum"] | dict(min_terms=7, max_terms=7),
    spell_backward=dict(min_word_len=7, max_word_len=7),
    countdown=tasks["countdown"] | dict(min_numbers=4, max_numbers=4),
  )

  c = ConfigDict()
  c.loop = "grpo"
  c.seed = 0
  c.num_steps = 88  # Updates.
  c.template = "r1_zero"

  c.cpu_devices = 4  # The most CPU cores that the rows are split over.
  c.mesh = dict(data=-1)
  c.rollout_mesh = dict(data=-1)
  c.model = dict(name="pretrained", path=base)
  c.tokenizer = dict(path=base)
  c.dataset = dict(
    name="bilingual", tasks=tasks, split="train", size=30_000, seed=0
  )
  c.rewards = dict(accuracy=1.0, format=1.0, language=0.0)
  c.grader = dict(num_workers=2, timeout=5.0)

  c.prompts_per_round = 24
  c.group_size = 16  # G
  c.minibatches = 2  # Updates per round.
  c.sampling = dict(
    num_slots=96,
    decode_steps=8,
    prompt_tokens=144,
    max_tokens=176,
    temperature=1.0,
  )
  c.rows = dict(widths=(512,), shard_rows=2)

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
  c.reference_every = 22
  c.router_bias_speed = 0.0  # The balancing biases are frozen in RL.
  c.teacher = dict()  # None.
  c.offload = ()  # "optimizer" or "reference" are kept in host memory.
  c.peak_flops = None  # FLOPs per second of a device, for perf/mfu.
  c.optimizer = dict(
    learning_rate=2e-4,
    warmup_steps=4,
    decay_steps=0,
    final_share=1.0,
    b1=0.9,
    b2=0.95,
    weight_decay=0.0,
    max_grad_norm=1.0,
  )
  c.max_skipped = 5
  c.checkpoint_every = 10

  c.evaluation = dict(
    every=22,
    seed=1_000,
    problems=256,
    samples=16,
    problems_between=64,
    samples_between=4,
    test=dict(name="bilingual", tasks=tasks, split="test", size=768, seed=0),
    larger=dict(name="bilingual", tasks=larger, split="test", size=192, seed=0),
  )
  return c
