r"""The evaluation of a model: pass@1 over k samples, and what else they show.

    python -m r1jax train --config=experiments/evaluate.py:aime \
        --workdir=runs/aime --config.model.path=DIRECTORY \
        --config.problems.sets.aime.dataset.path=PROBLEMS.jsonl

The model is DeepSeek-R1, or one of its architecture, in Hugging Face layout.
WORKDIR/results.json has the metrics of every task,
WORKDIR/items/TASK.jsonl every completion with its rewards.

From the paper (arXiv:2501.12948v2, app. D.1): completions of at most 32,768
tokens at temperature 0.6 and top-p 0.95; 64 samples of each problem of AIME
2024 (`:aime`), 16 of MATH-500 (`:math500`); the question is followed by a
request for the final answer in a box (Table 32). Published for DeepSeek-R1:
pass@1 of 79.8% on AIME 2024 and 97.3% on MATH-500; for R1-Zero 77.9% and 95.9%.
Not run here.

`:tiny` is the demo's evaluation, for the model of `experiments/demo.py`: its
template, temperature 1, 16 samples of 64 problems of each task.
"""

import importlib.resources

from ml_collections import ConfigDict, FieldReference

VARIANTS = ("aime", "math500", "tiny")
BOXED = (
  "{question}\nPlease reason step by step, and put your final answer within "
  "\\boxed{}."
)
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


def get_config(variant="aime"):
  """The config of the evaluation; the caller sets the paths."""
  if variant not in VARIANTS:
    raise ValueError(f"unknown variant {variant!r}; there is {VARIANTS}")
  path = FieldReference("")
  c = ConfigDict()
  c.loop = "evaluate"
  c.seed = 1_000
  c.cpu_devices = 4  # Not used on a pod.
  c.mesh = dict(data=-1)
  c.tokenizer = dict(path=path)
  c.rewards = dict(accuracy=1.0, format=0.0, language=0.0)
  if variant == "tiny":
    path.set(str(importlib.resources.files("r1jax") / "base"))
    c.model = dict(name="pretrained", path=path)
    c.template = "r1_zero"
    c.grader = dict(num_workers=2, timeout=5.0)
    c.sampling = dict(
      num_slots=96,
      decode_steps=8,
      prompt_tokens=144,
      max_tokens=160,
      temperature=1.0,
    )
    tasks = dict(
      name="reasoning_gym", tasks=TASKS, split="test", size=768, seed=0
    )
    c.problems = dict(sets=dict(test=dict(dataset=tasks, samples=16, count=64)))
    return c

  c.model = dict(
    name="pretrained",
    path=path,
    preset_name="deepseek_v3",
    compute_dtype="bfloat16",
  )
  c.template = "chat"
  c.grader = dict(num_workers=16, timeout=10.0)
  c.sampling = dict(
    num_slots=256,
    decode_steps=64,
    prompt_tokens=1_024,
    max_tokens=32_768,
    temperature=0.6,
    top_p=0.95,
  )
  samples, count = (64, 30) if variant == "aime" else (16, 500)
  problems = dict(name="problems", path="", prompt=BOXED)
  c.problems = dict(
    sets={variant: dict(dataset=problems, samples=samples, count=count)}
  )
  return c
