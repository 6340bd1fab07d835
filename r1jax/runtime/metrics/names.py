"""The table of all metrics: their names, units and definitions."""

import fnmatch

# {pattern: (unit, definition)}. A * stands for a name that depends on the run:
# a reward, a task, a layer, k.
METRICS: dict[str, tuple[str, str]] = {
  "reward/mean": ("", "weighted sum of the rewards, mean over completions"),
  "reward/std": ("", "standard deviation in a group, mean over groups"),
  "reward/frac_zero_std": ("share", "groups whose rewards are all equal"),
  "reward/frac_all_correct": ("share", "groups with only correct completions"),
  "reward/frac_all_wrong": ("share", "groups with only wrong completions"),
  "reward/none_count": ("", "completions without a grade"),
  "reward/*/mean": ("", "mean of one reward, before its weight"),
  "reward/*/std": ("", "standard deviation of it over all completions"),
  "reward/*/none_frac": ("share", "completions that it could not grade"),
  "advantage/mean": ("", "mean over completions; 0 up to rounding"),
  "advantage/std": (
    "",
    "standard deviation over completions; below 1 if groups have no signal",
  ),
  "advantage/min": ("", "minimum over completions"),
  "advantage/max": ("", "maximum over completions"),
  "loss/total": ("", "the loss that the optimizer minimizes"),
  "loss/policy": ("", "the clipped surrogate objective alone, negated"),
  "loss/kl": ("", "the KL estimate times its coefficient"),
  "loss/entropy": ("nats", "the entropy bonus times its coefficient, negated"),
  "loss/nll": ("nats", "next-token loss, mean over the tokens it counts"),
  "loss/mtp": ("nats", "the same for later tokens, by the MTP blocks"),
  "loss/balance": (
    "",
    "load-balancing loss of the experts, mean over tokens; 1 is even",
  ),
  "kl/ref": ("nats", "k3 against the reference policy, token mean"),
  "kl/old": ("nats", "k3 against the old policy, token mean"),
  "kl/old_k1": ("nats", "k1 against the old policy, token mean; may be < 0"),
  "entropy/mean": ("nats", "of the policy, mean over sampled tokens"),
  "ratio/mean": ("", "probability under policy / old policy, token mean"),
  "ratio/min": ("", "smallest ratio"),
  "ratio/max": ("", "largest ratio"),
  "clip_ratio/low": ("share", "tokens below the clip range, advantage < 0"),
  "clip_ratio/high": ("share", "tokens above the clip range, advantage > 0"),
  "clip_ratio/region": ("share", "either: tokens that give no gradient"),
  "completions/mean_length": ("tokens", "mean length, EOS included"),
  "completions/min_length": ("tokens", "length of the shortest"),
  "completions/max_length": ("tokens", "length of the longest"),
  "completions/terminated_mean_length": ("tokens", "mean of those with an EOS"),
  "completions/terminated_min_length": (
    "tokens",
    "shortest of those with an EOS",
  ),
  "completions/terminated_max_length": (
    "tokens",
    "longest of those with an EOS",
  ),
  "completions/clipped_ratio": ("share", "completions cut at the token limit"),
  "completions/eos_frac": ("share", "completions that end with EOS"),
  "completions/tasks/*/accuracy": ("share", "correct completions of a task"),
  "domain/*/reward": ("", "weighted sum of the rewards, mean over a domain"),
  "domain/*/accuracy": ("share", "correct completions of a domain, of graded"),
  "domain/*/length": ("tokens", "mean length of a domain's completions"),
  "domain/*/completions": ("", "completions of the domain in the round"),
  "reflection/*": ("", 'uses of a word like "wait", per completion'),
  "sampling/logp_diff_mean": (
    "nats",
    "|trainer - sampler| log-probability, token mean",
  ),
  "sampling/logp_diff_max": ("nats", "its largest value"),
  "sampling/prob_diff_mean": (
    "",
    "|trainer - sampler| probability, token mean",
  ),
  "sampling/ratio_mean": ("", "probability under trainer / sampler, mean"),
  "sampling/ratio_max": ("", "its largest value"),
  "sampling/ratio_clipped": ("share", "tokens whose ratio was truncated"),
  "router/load/*": ("share", "tokens of a layer by expert, as a list"),
  "router/load_cv": ("", "std / mean of that load, mean over layers"),
  "router/replay_mismatch": (
    "share",
    "replayed experts that the trainer's router would not choose, token mean",
  ),
  "generate/samples": ("", "samples of a shard"),
  "generate/kept": ("", "samples that met all filters"),
  "generate/dropped/*": ("", "samples that did not meet a filter"),
  "generate/domain/*/samples": ("", "samples of a domain"),
  "generate/domain/*/kept": ("", "samples of a domain that were kept"),
  "generate/domain/*/tokens": ("tokens", "of the kept samples of a domain"),
  "gen/num_gen_batches": ("", "batches sampled to fill the round"),
  "gen/discarded_samples": ("", "completions sampled but not trained on"),
  "gen/idle_frac": ("share", "decode steps in which a shard had no work, mean"),
  "optim/grad_norm": ("", "global norm of the gradient before clipping"),
  "optim/lr": ("", "learning rate of the update"),
  "optim/update_norm": ("", "global norm of the change of the parameters"),
  "optim/idle": ("", "1 if the gradient was exactly 0, so nothing changed"),
  "optim/skipped": ("share", "updates skipped: the gradient was not finite"),
  "perf/tokens_per_s": ("tokens/s", "sampled tokens over the round's time"),
  "perf/tokens_per_s_per_device": ("tokens/s", "the same, per device"),
  "perf/mfu": ("share", "model FLOPs / peak FLOPs of the devices"),
  "perf/step_time": ("s", "time of one round"),
  "perf/gen_time": ("s", "time of sampling"),
  "perf/reward_time": ("s", "time of waiting for grades"),
  "perf/logprob_time": ("s", "time of scoring with policy and reference"),
  "perf/train_time": ("s", "time of the updates"),
  "perf/sync_time": ("s", "time of resharding parameters for the sampler"),
  "perf/sync_bytes": ("bytes", "received for it by a device from others"),
  "perf/eval_time": ("s", "time of the evaluation"),
  "perf/hbm_peak": ("bytes", "peak memory of a device so far"),
  "perf/host_peak": ("bytes", "peak memory of the host process so far"),
  "perf/compilations": (
    "",
    "programs compiled, or read from the cache, so far",
  ),
  "perf/compile_time": ("s", "time spent on compilations so far"),
  "round": ("", "rounds so far"),
  "reference_step": ("", "step at which the reference policy was copied"),
  "data/epoch": ("", "passes over the prompts so far"),
  "data/epoch/*": ("", "passes over a part of the mixture so far"),
  "data/tokens": ("tokens", "sampled in the round"),
  "data/pack_fill": ("share", "slots of the packed rows that hold a token"),
  "data/pack_spread": ("", "tokens of the fullest packed row / the mean"),
  "data/prompts_seen": ("", "prompts trained on so far, repeats included"),
  "reward_infra/timeout_count": ("", "grades that ran out of time"),
  "reward_infra/crash_count": ("", "grades that raised, or died"),
  "eval/*/pass@1": (
    "share",
    "correct samples of a problem, mean over problems",
  ),
  "eval/*/pass@1_stderr": ("share", "its standard error over problems"),
  "eval/*/pass@*": ("share", "unbiased estimate that one of k is correct"),
  "eval/*/cons@*": ("share", "problems whose majority of k answers is correct"),
  "eval/*/mean_length": ("tokens", "mean length of samples, EOS included"),
  "eval/*/truncated": ("share", "samples cut at the token limit"),
  "eval/*/unparsed": ("share", "samples without a readable answer"),
  "eval/*/format": ("share", "samples in the format of the template"),
  "eval/*/guess_share": ("share", "samples that answer without any step"),
  "eval/*/best_style_pass@1": ("share", "pass@1 of the best style of working"),
}


def pattern_of(name: str) -> str | None:
  """The pattern in METRICS that matches a metric; None if there is none."""
  if name in METRICS:
    return name
  return next((p for p in METRICS if fnmatch.fnmatchcase(name, p)), None)


def describe(name: str) -> tuple[str, str] | None:
  """The unit and definition of a metric; None if it is not in METRICS."""
  return METRICS.get(pattern_of(name) or "")
