r"""R1-Zero on programming problems, with more feedback than the tests give.

    r1jax train --config=experiments/code_zero.py --workdir=runs/code_zero \
        --config.model.path=MODEL --config.dataset.path=problems.jsonl

The R1 articles describe code rewards as a compiler and tests (arXiv:2501.12948,
sec. 2.2.2). `:tests` has the tests alone; `:feedback`, the default, adds three
parts that are off elsewhere: a tenth for a program that compiles, a tenth for
the fastest right programs of a group, and the share of tests that pass in place
of all or nothing. Ours are the weights, and the recipe: that of
`r1_zero.py:qwen_math_7b`, from Qwen2.5-14B, with a limit of 4,096 tokens.

A line of the file has `problem` and `tests`, a list of {"input", "output"}, as
`r1/code_tests.py` writes them. MODEL is a directory of Hugging Face layout. Not
run.
"""

from ml_collections import ConfigDict, FieldReference

VARIANTS = ("feedback", "tests")


def get_config(variant="feedback"):
  """The config of the run; the caller sets the paths."""
  if variant not in VARIANTS:
    raise ValueError(f"unknown variant {variant!r}; there is {VARIANTS}")
  c = ConfigDict()
  c.loop = "grpo"
  c.seed = 0
  c.num_steps = 800  # Updates.
  c.template = "r1_zero"

  c.cpu_devices = 1  # Not used on a pod.
  c.mesh = dict(data=-1, fsdp=16, context=4)
  c.rollout_mesh = dict(data=-1, tensor=4)
  path, problems = FieldReference(""), FieldReference("")
  c.model = dict(
    name="pretrained",
    path=path,
    preset_name="qwen2.5-14b",
    compute_dtype="bfloat16",
  )
  c.tokenizer = dict(path=path, bos=None)
  c.dataset = dict(name="problems", path=problems, domain="code", split="train")
  c.rewards = dict(accuracy=1.0, format=1.0)
  if variant == "feedback":
    c.rewards = dict(
      accuracy=dict(weight=1.0, partial=True),
      format=1.0,
      compiles=0.1,
      speed=dict(weight=0.1, factor=2.0, floor=0.1),
    )
  # A call may grade a whole group, 4 seconds for each of its programs.
  c.grader = dict(num_workers=32, timeout=120.0)

  c.prompts_per_round = 128
  c.group_size = 8  # G
  c.minibatches = 8  # Updates per round.
  c.sampling = dict(
    num_slots=1_024,
    decode_steps=64,
    prompt_tokens=2_048 - 128,  # The template takes less than 128.
    max_tokens=4_096,
    temperature=1.0,
  )
  c.rows = dict(widths=(8_192, 4_096), shard_rows=1)

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
    learning_rate=1e-6,
    warmup_steps=0,
    decay_steps=0,
    final_share=1.0,
    b1=0.9,
    b2=0.95,
    weight_decay=0.0,
    max_grad_norm=1.0,
  )
  c.max_skipped = 5
  c.checkpoint_every = 40

  c.evaluation = dict(
    every=400,
    seed=1_000,
    problems=64,
    samples=16,
    problems_between=64,
    samples_between=4,
    test=dict(name="problems", path=problems, domain="code", split="test"),
  )
  return c
