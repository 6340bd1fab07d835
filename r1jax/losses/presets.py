"""Recipes of the papers, as what an experiment's config would say.

A section (a dict) is whole: it takes the place of the config's own and is not
merged with it. What a paper does not print, and what is no part of the
objective (learning rate, lengths, rewards), stays as the experiment has it;
values that we had to choose are marked as ours.

  advantage          `advantages` of r1jax.losses.advantages
  aggregation        `token_weights` of r1jax.losses.aggregation
  loss               `grpo_loss` of r1jax.losses.grpo
  kl_reward          `kl_penalties` of r1jax.losses.kl; coefficient 0 for no KL
                     in the reward
  mask_truncated     completions cut at the token limit teach nothing
  dynamic_sampling   `rounds`: how often groups that teach nothing may be
                     replaced by newly sampled ones; 0 for never
  group_size         completions per prompt
  prompts_per_round  prompts of a rollout
  minibatches        updates per rollout, each completion in one of them
  reference_every    updates between copies of the policy to the reference
"""


def _loss(**changes):
  """GRPO's loss with PPO's clip and without a KL, but for `changes`."""
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
  """GRPO's recipe, but for `changes`."""
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
  # DeepSeek-R1, arXiv:2501.12948, methods: 32 questions an update, 16 outputs
  # each, 8,192 outputs a rollout, split at random into 16 minibatches. It
  # writes the ratio for whole outputs but speaks of tokens; ratio, aggregation
  # and k3 are those of the GRPO that it cites.
  "r1": _recipe(
    loss=_loss(clip=dict(name="symmetric", epsilon=10.0), kl_coefficient=0.001),
    group_size=16,
    prompts_per_round=512,
    minibatches=16,
    reference_every=400,
  ),
  # DeepSeekMath, arXiv:2402.03300, sec. 4.2: a batch of 1,024 outputs, one
  # update after each exploration. The clip is ours.
  "grpo": _recipe(
    loss=_loss(kl_coefficient=0.04),
    group_size=64,
    prompts_per_round=16,
    minibatches=1,
  ),
  # DAPO, arXiv:2503.14476, sec. 4.1. Its soft penalty on overlong completions
  # is a reward, and makes masking them needless. The bound on rounds is ours:
  # the paper samples until the batch is full.
  "dapo": _recipe(
    aggregation=dict(name="token_mean"),
    loss=_loss(clip=dict(name="higher", low=0.2, high=0.28)),
    dynamic_sampling=dict(rounds=10),
    group_size=16,
    prompts_per_round=512,
    minibatches=16,
  ),
  # Dr. GRPO, arXiv:2503.20783, and the scripts published with it: completions
  # of at most 3,000 tokens, 128 of them an update. The clip is ours.
  "dr_grpo": _recipe(
    advantage=dict(name="group_mean"),
    aggregation=dict(name="constant", divisor=3000),
    group_size=8,
    prompts_per_round=128,
    minibatches=8,
  ),
  # GSPO, arXiv:2507.18071, sec. 5.1. No KL is ours: it leaves one out for
  # brevity and prints no coefficient.
  "gspo": _recipe(
    loss=_loss(ratio="sequence", clip=dict(name="higher", low=3e-4, high=4e-4)),
    minibatches=4,
  ),
  # MiniMax-M1's CISPO, arXiv:2506.13585: no lower bound, 16 updates a batch,
  # dynamic sampling. It prints no upper bound; ours lets a weight grow
  # to 5. The bound on rounds is ours too.
  "cispo": _recipe(
    aggregation=dict(name="token_mean"),
    loss=_loss(clip=dict(name="cispo", low=1.0, high=4.0)),
    dynamic_sampling=dict(rounds=10),
    minibatches=16,
  ),
  # RLOO, arXiv:2402.14740: REINFORCE on whole completions, the sum over their
  # tokens, with the KL in the reward. The coefficient is ours.
  "rloo": _recipe(
    advantage=dict(name="leave_one_out"),
    aggregation=dict(name="constant", divisor=1),
    loss=_loss(clip=dict(name="none")),
    kl_reward=dict(name="k1", coefficient=0.03),
    group_size=4,
    minibatches=1,
  ),
}
