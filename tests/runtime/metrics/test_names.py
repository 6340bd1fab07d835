"""Every number of a row says what it is."""

import pathlib
import re

from r1jax.runtime import metrics

# What users of other frameworks look for.
EXPECTED = """
reward/{mean,std,frac_zero_std,frac_all_correct,frac_all_wrong,none_count}
reward/accuracy/{mean,std,none_frac} advantage/{mean,std,min,max}
loss/{policy,kl,total,entropy,nll,mtp,balance} kl/{ref,old,old_k1}
entropy/mean ratio/{mean,min,max} clip_ratio/{low,high,region}
completions/{mean,min,max}_length completions/terminated_{mean,min,max}_length
completions/{clipped_ratio,eos_frac}
sampling/{logp_diff_mean,logp_diff_max,prob_diff_mean}
sampling/{ratio_mean,ratio_max,ratio_clipped}
gen/{num_gen_batches,discarded_samples,idle_frac}
optim/{grad_norm,lr,update_norm,skipped} router/{load/0,load_cv,replay_mismatch}
perf/{tokens_per_s,tokens_per_s_per_device,mfu,step_time,gen_time,reward_time}
perf/{logprob_time,train_time,sync_time,hbm_peak,host_peak,compilations}
perf/compile_time data/{epoch,epoch/gsm8k,prompts_seen,tokens}
data/{pack_fill,pack_spread} reward_infra/{timeout,crash}_count
domain/math/gsm8k/{reward,accuracy,length,completions} round reference_step
eval/aime/{pass@1,pass@1_stderr,pass@16,cons@64,mean_length,truncated,unparsed}
""".split()
ROOT = pathlib.Path(metrics.__file__).parents[2]


def expand(pattern):
  before, brace, rest = pattern.partition("{")
  if not brace:
    return [pattern]
  inner, _, after = rest.partition("}")
  return [before + each + after for each in inner.split(",")]


def test_what_users_look_for_is_defined():
  names = [name for each in EXPECTED for name in expand(each)]
  assert not [name for name in names if not metrics.describe(name)]


def test_every_name_in_the_code_is_defined():
  families = "|".join(
    sorted({name.partition("/")[0] for name in metrics.METRICS if "/" in name})
  )
  pattern = re.compile(rf'f?"((?:{families})/[^"\s.<]+)"')
  found = set()
  for folder in ("training", "losses", "rollouts", "runtime"):
    for path in (ROOT / folder).rglob("*.py"):
      found |= {*pattern.findall(path.read_text())}
  # Of a name that is put together, the braces stand for what the run has.
  names = {re.sub(r"\{[^}]*\}", "x", name) for name in found}
  parts = {name for name in names if name.endswith(("@", "x/x"))}
  parts.add("router/load")  # Its rows are "router/load/LAYER".
  undefined = {n for n in names - parts if metrics.describe(n) is None}
  assert not undefined, "define them in METRICS"
  assert len(names) > 60


def test_a_definition_is_that_of_the_name():
  for name, begins in (
    ("reward/mean", "weighted sum"),
    ("reward/accuracy/mean", "mean of one reward"),
    ("eval/sums/pass@1", "correct samples"),
    ("eval/sums/pass@16", "unbiased"),
  ):
    assert metrics.describe(name)[1].startswith(begins)
  assert metrics.describe("router/load/2")[1].endswith("as a list")
  assert metrics.describe("nonsense") is None


def test_units_are_few():
  for unit, definition in metrics.METRICS.values():
    assert len(definition) > 5
    assert unit in ("", "share", "nats", "tokens", "s", "tokens/s", "steps",
                    "bytes")  # fmt: skip
