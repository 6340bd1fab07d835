r"""DeepSeek-R1-Zero: pure RL on DeepSeek-V3-Base, on a pod.

    python -m r1jax train --config=experiments/r1_zero.py:long \
        --workdir=/data/r1_zero --bucket=gs://BUCKET/r1_zero \
        --config.model.path=DIRECTORY --config.tokenizer.path=DIRECTORY \
        --config.dataset.path=PROBLEMS.jsonl

    r1jax plan --config=experiments/r1_zero.py --topology=v5p:8x8x8

Every host runs the first command (docs/launching.md says how to start them).
The workdir is a folder that all hosts share; checkpoints may go to a bucket.
The second command checks, without a pod, whether the run would fit. With
`--run --lengths=lognormal:500-14200:1.0` it adds up the hours of the whole run;
the mean length grew about so far in the paper, in 198 hours on 512 H800.

From the paper (arXiv:2501.12948v2, sec. 2.1, and the methods of its Nature
version): the template, accuracy and format rewards with equal weight, learning
rate 3e-6, the k3 KL with coefficient 0.001, temperature 1, G = 16, 32 questions
per update, 8,192 outputs per rollout in 16 minibatches, completions of at most
32,768 tokens, and copying the policy to the reference policy every 400 steps.
`r1_zero.py:long` is the whole run: 10,400 steps, with completions of up to
65,536 tokens from step 8,200 on. Without `:long`, it ends there, at step 8,192.

Ours, because the paper gives no values: the clip range (it gives 10 for R1, but
none for R1-Zero), the sum of the loss over the tokens of a completion and its
mean over completions, AdamW with the pre-training values of V3
(arXiv:2412.19437, sec. 4.2) without weight decay, no warm-up, frozen balancing
biases and MTP blocks, bfloat16 activations with float32 master weights, the
mesh, and the problems.

`r1_zero.py:qwen_math_7b` is R1-Zero on Qwen2.5-Math-7B, whose context is 4,096
tokens: our own recipe with the rewards of the paper.

Published result of the whole run: AIME 2024 pass@1 from 15.6% to 77.9% (Nature
version, Fig. 1), with the problems of the paper. Not run here.
"""

from ml_collections import ConfigDict, FieldReference

VARIANTS = ("deepseek_v3", "long", "qwen_math_7b")


def get_config(variant="deepseek_v3"):
  """The config of the run; the caller sets the three paths."""
  if variant not in VARIANTS:
    raise ValueError(f"unknown variant {variant!r}; there is {VARIANTS}")
  c = ConfigDict()
  c.loop = "grpo"
  c.seed = 0
  c.num_steps = 10_400 if variant == "long" else 8_192  # Updates.
  c.template = "r1_zero"

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
  c.rewards = dict(accuracy=1.0, format=1.0)
  c.grader = dict(num_workers=32, timeout=10.0)

  c.prompts_per_round = 512
  c.group_size = 16  # G
  c.minibatches = 16  # Updates per round.
  longest = 65_536 if variant == "long" else 32_768
  c.sampling = dict(
    # 4 slots for each of 512 chips. Beside the state of training and replicated
    # weights, a chip of 95 GiB has space for two copies of their caches; the
    # loop over tokens needs the caches in another layout.
    num_slots=2_048,
    decode_steps=64,
    prompt_tokens=2_048 - 128,  # The template takes less than 128.
    max_tokens=longest,
    temperature=1.0,
  )
  # The widest row holds the longest prompt and completion; a chip has a
  # multiple of 64 tokens of any row.
  widest = 81_920 if variant == "long" else 40_960
  c.rows = dict(widths=tuple(widest >> i for i in range(4)), shard_rows=1)

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
  if variant == "long":
    c.max_tokens = ((0, 32_768), (8_200, 65_536))
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
  # Every round: a host saves 74 GB of v5p:8x8x8, which takes a minute or two.
  # docs/launching.md has the rule.
  c.checkpoint_every = 16

  c.evaluation = dict(
    every=400,
    seed=1_000,
    problems=64,
    samples=16,
    problems_between=64,
    samples_between=4,
    test=dict(name="problems", path=problems, split="test"),
  )
  if variant == "qwen_math_7b":
    c.num_steps = 800
    # The state is split over all 64 chips of v5e:8x8; split over 16, it would
    # exceed the 15.75 GiB of a chip. Set fsdp to 4 on v6e:4x4.
    c.mesh = dict(data=-1, fsdp=16, expert=1, context=4)
    c.rollout_mesh = dict(data=-1, tensor=4)
    c.model = dict(
      name="pretrained",
      path=path,
      preset_name="qwen2.5-math-7b",
      compute_dtype="bfloat16",
    )
    c.prompts_per_round, c.group_size, c.minibatches = 128, 8, 8
    c.checkpoint_every = 40
    c.sampling.update(num_slots=1_024, prompt_tokens=896, max_tokens=3_072)
    c.rows.widths = (8_192, 4_096, 2_048)
    c.optimizer.learning_rate = 1e-6
  return c
