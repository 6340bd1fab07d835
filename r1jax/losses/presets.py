"""Objectives of published methods, as sections of an experiment's config.

A preset's section (a dict) replaces the config's section as a whole. A preset
sets only what its paper prints and what belongs to the objective. Learning
rates, lengths and rewards stay as the experiment sets them. Comments say which
values are our choice.

  advantage          keyword arguments of `advantages.advantages`
  aggregation        keyword arguments of `aggregation.token_weights`
  loss               keyword arguments of `grpo.grpo_loss`
  kl_reward          keyword arguments of `kl.kl_penalties`; a coefficient of 0
                     for no KL in the reward
  mask_truncated     do not train on completions cut at the token limit
  dynamic_sampling   `rounds`: how often groups without a learning signal may be
                     replaced by newly sampled ones; 0 for never
  group_size         completions per prompt
  prompts_per_round  prompts of a rollout
  minibatches        updates per rollout; each completion is in one of them
  reference_every    updates between copies of the policy to the reference
"""


def _loss(**changes):
  """`grpo_loss` with PPO's clip, no KL and no entropy bonus, and `changes`."""
  plain = dict(
    ratio="token",
    clip=dict(name="symmetric", epsilon=0.2),
    kl="k3",
    kl_coefficient=0.0,
    entropy_coefficient=0.0,
    correction=None,
  )
  return plain | changes


def _recipe(**changes):
  """The objective of GRPO, with `changes`."""
  plain = dict(
    advantage=dict(name="group_std", ddof=0),
    aggregation=dict(name="completion_mean"),
    loss=_loss(),
    kl_reward=dict(name="k1", coefficient=0.0),
    mask_truncated=False,
    dynamic_sampling=dict(rounds=0),
  )
  return plain | changes


PRESETS = {
  # DeepSeek-R1, arXiv:2501.12948, methods: 32 prompts per update with 16
  # completions each; 8,192 completions per rollout, split at random into 16
  # minibatches. Its equation has the ratio of whole completions, but its text
  # speaks of tokens. Ratio, aggregation and KL are those of GRPO, which it
  # cites.
  "r1": _recipe(
    loss=_loss(clip=dict(name="symmetric", epsilon=10.0), kl_coefficient=0.001),
    group_size=16,
    prompts_per_round=512,
    minibatches=16,
    reference_every=400,
  ),
  # DeepSeekMath, arXiv:2402.03300, sec. 4.2: batches of 1,024 completions, one
  # update per rollout. The clip is our choice.
  "grpo": _recipe(
    loss=_loss(kl_coefficient=0.04),
    group_size=64,
    prompts_per_round=16,
    minibatches=1,
  ),
  # DAPO, arXiv:2503.14476, sec. 4.1. Its soft penalty on overlong completions
  # is a reward and replaces masking. The bound on rounds is our choice: the
  # paper samples until the batch is full.
  "dapo": _recipe(
    aggregation=dict(name="token_mean"),
    loss=_loss(clip=dict(name="asymmetric", low=0.2, high=0.28)),
    dynamic_sampling=dict(rounds=10),
    group_size=16,
    prompts_per_round=512,
    minibatches=16,
  ),
  # Dr. GRPO, arXiv:2503.20783, and the scripts published with it: completions
  # of at most 3,000 tokens, 128 per update. The clip is our choice.
  "dr_grpo": _recipe(
    advantage=dict(name="group_mean"),
    aggregation=dict(name="constant", divisor=3000),
    group_size=8,
    prompts_per_round=128,
    minibatches=8,
  ),
  # GSPO, arXiv:2507.18071, sec. 5.1. The paper omits the KL for brevity and
  # prints no coefficient; 0 is our choice.
  "gspo": _recipe(
    loss=_loss(
      ratio="sequence", clip=dict(name="asymmetric", low=3e-4, high=4e-4)
    ),
    minibatches=4,
  ),
  # CISPO of MiniMax-M1, arXiv:2506.13585: no lower bound, 16 updates per
  # rollout, dynamic sampling. The paper prints no upper bound. A weight
  # of at most 5 is our choice, and so is the bound on rounds.
  "cispo": _recipe(
    aggregation=dict(name="token_mean"),
    loss=_loss(clip=dict(name="cispo", low=1.0, high=4.0)),
    dynamic_sampling=dict(rounds=10),
    minibatches=16,
  ),
  # RLOO, arXiv:2402.14740: REINFORCE on the sum over a completion's tokens,
  # with the KL in the reward. The coefficient is our choice.
  "rloo": _recipe(
    advantage=dict(name="leave_one_out"),
    aggregation=dict(name="constant", divisor=1),
    loss=_loss(clip=dict(name="none")),
    kl_reward=dict(name="k1", coefficient=0.03),
    group_size=4,
    minibatches=1,
  ),
}
