r"""Pairs of answers for the reward model of helpfulness, compared by a judge.

    r1jax train --config=experiments/r1/preference_data.py \
        --workdir=runs/r1/pairs --config.model.path=MODEL \
        --config.dataset.path=REQUESTS.jsonl

    r1jax train --config=experiments/r1/reward_model.py:judged \
        --workdir=runs/r1/helpfulness --config.dataset.path=runs/r1/pairs ...

From the paper (arXiv:2501.12948v2, sec. 3.1 and app. B.2): DeepSeek-V3 compares
two answers to a request, with one of five verdicts after an answer of its own.
It is asked four times, in random order; the verdicts are averaged, and pairs
that hardly differ are left out: 66,000 remain. Ours, because the paper does not
say it: both answers come from the same model, at temperature 1, and half of the
verdicts are in either order.

The lengths of the better and the worse answers should be alike over the whole
set; the run of the reward model reports how far the longer one alone would do.
Not run.
"""

from ml_collections import ConfigDict, FieldReference


def get_config():
  """The config of the run; the caller sets the paths."""
  c = ConfigDict()
  c.loop = "generate"
  c.seed = 0
  c.template = "deepseek_r1"

  c.cpu_devices = 1  # Not used on a pod.
  c.mesh = dict(data=-1, expert=256)
  path = FieldReference("")
  c.model = dict(
    name="pretrained",
    path=path,
    dtype="bfloat16",
    preset_name="deepseek_v3",
    compute_dtype="bfloat16",
    how=dict(moe_chunk=2048),
  )
  c.tokenizer = dict(path=path, bos=None)
  c.sampling = dict(
    num_slots=4_096,
    decode_steps=64,
    prompt_tokens=2_048,
    max_tokens=8_192,
    temperature=1.0,
  )
  c.teacher = None
  c.rewriter = None

  c.dataset = dict(name="problems", path="", domain="helpful")
  c.decontamination = dict(against={}, size=10)
  c.samples = 2  # Of each request.
  c.prompts_per_shard = 1_024
  c.format = "jsonl"

  c.rewards = dict(
    preference=dict(
      weight=1.0,
      base_url="http://localhost:8000/v1",
      model="deepseek-v3",
      deadline=600.0,
      samples=4,
    )
  )
  c.keep = dict()  # All answers that ended.
  c.grader = dict(num_workers=1, timeout=10.0)
  return c
