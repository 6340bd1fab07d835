r"""The evaluation of a stage of DeepSeek-R1: a column of the paper's Table 3.

    r1jax train --config=experiments/r1/evaluation.py \
        --workdir=runs/r1/results --config.model.path=MODEL \
        --config.problems.sets.aime24.dataset.path=aime24.jsonl ...

From the paper (arXiv:2501.12948v2, app. D.1 and J): completions of at most
32,768 tokens at temperature 0.6 and top-p 0.95; 64 samples of each problem of
AIME 2024 and GPQA, 16 of MATH-500, 8 of LiveCodeBench; and the prompts of these
(`r1jax.data.benchmarks`). IFEval is sampled 4 times, which is ours. Table 3
compares R1-Zero, the three checkpoints between and R1: on AIME 2024, pass@1 is
77.9, 59.0, 74.0, 78.1 and 79.8%.

MODEL is a directory of Hugging Face layout. R1-Zero is asked with
`--config.template=r1_zero`. Not run but tiny.

`:tiny` is for the models of `experiments/r1/pipeline.py:tiny`: 64 problems of
each task in two languages, 16 larger ones of each, and general requests, which
the rule `quality` grades. A completion is drawn at temperature 1, four times of
each problem.
"""

import importlib.resources

from ml_collections import ConfigDict, FieldReference

from r1jax.data import benchmarks

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
  """The config of the evaluation; the caller sets the paths."""
  if variant not in VARIANTS:
    raise ValueError(f"unknown variant {variant!r}; there is {VARIANTS}")
  path = FieldReference("")
  c = ConfigDict()
  c.loop = "evaluate"
  c.seed = 1_000
  c.template = "deepseek_r1"

  c.cpu_devices = 1  # Not used on a pod.
  c.mesh = dict(data=-1, expert=256)
  c.model = dict(
    name="pretrained",
    path=path,
    dtype="bfloat16",
    preset_name="deepseek_v3",
    compute_dtype="bfloat16",
    how=dict(moe_chunk=2048),
  )
  c.tokenizer = dict(path=path, bos=None)
  names = ("aime24", "math500", "gpqa", "livecodebench", "ifeval")
  c.problems = dict(sets={name: benchmarks.section(name, "") for name in names})
  c.rewards = dict(accuracy=1.0, thought=0.0, language=0.0)
  c.sampling = dict(
    num_slots=4_096,
    decode_steps=64,
    prompt_tokens=4_096,
    max_tokens=32_768,
    temperature=0.6,
    top_p=0.95,
  )
  c.grader = dict(num_workers=32, timeout=10.0)
  if variant == "tiny":
    c.template = "r1_zero"
    c.cpu_devices = 4
    c.mesh = dict(data=-1)
    path.set(str(importlib.resources.files("r1jax") / "base_r1"))
    c.model = dict(name="pretrained", path=path)
    problems = dict(
      name="bilingual", tasks=TASKS, split="test", size=768, seed=0
    )
    requests = dict(name="general", split="test", size=400, seed=0)
    c.problems = dict(
      sets=dict(
        problems=dict(dataset=problems, samples=4, count=64),
        general=dict(dataset=requests, samples=4, count=16),
      )
    )
    c.rewards = dict(
      reasoning_gym=dict(accuracy=1.0, thought=0.0, language=0.0),
      general=dict(quality=1.0, thought=0.0, language=0.0),
    )
    c.sampling.update(
      num_slots=96,
      decode_steps=8,
      prompt_tokens=144,
      max_tokens=176,
      temperature=1.0,
      top_p=1.0,
    )
    c.grader = dict(num_workers=2, timeout=5.0)
  return c
