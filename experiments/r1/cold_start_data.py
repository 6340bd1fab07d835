r"""The samples of the cold start: few, right, and good to read (stage 1).

    r1jax train --config=experiments/r1/cold_start_data.py \
        --workdir=runs/r1/cold_start_data --config.model.path=R1_ZERO \
        --config.dataset.path=problems.jsonl

From the paper (arXiv:2501.12948v2, appendix B.3.2): traces of R1-Zero at
temperature 1, several for each of thousands of prompts; right and readable
ones are kept, without repetition or mixed languages. DeepSeek-V3 rewrites them
(`:rewritten`): in the first person, in the language of the question, and with a
solution for the reader in place of R1-Zero's bare answer. Other ways that the
first version names (section 2.3.1): few-shot prompting with long thoughts as
examples (`:few_shot`, of any model behind an endpoint), and direct prompting
(`:direct`).

Ours, because the paper gives no values: 4 samples of a prompt, the thresholds
of `keep`, and what the model that rewrites is asked.

`:tiny` keeps traces of a model like that of `experiments/r1/zero.py` on a CPU.
The others are not run.
"""

import importlib.resources

from ml_collections import ConfigDict, FieldReference

VARIANTS = ("traces", "rewritten", "few_shot", "direct", "tiny")
SERVER = dict(base_url="http://localhost:8000/v1", model="deepseek-v3")
DIRECT = (
  "Think step by step before you answer: put your thought between <think> and "
  "</think>, reflect on each step and verify the result. Then write a short "
  "solution for the reader, with the final answer in \\boxed{}."
)


def get_config(variant="traces"):
  """The config of the run; the caller sets the paths."""
  if variant not in VARIANTS:
    raise ValueError(f"unknown variant {variant!r}; there is {VARIANTS}")
  c = ConfigDict()
  c.loop = "generate"
  c.seed = 0
  c.template = "r1_zero"

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
    num_slots=2_048,
    decode_steps=64,
    prompt_tokens=2_048 - 128,  # The template takes less than 128.
    max_tokens=32_768,
    temperature=1.0,
  )
  c.teacher = None
  c.rewriter = None

  c.dataset = dict(name="problems", path="")
  c.decontamination = dict(against={}, size=10)
  c.samples = 4  # Of each prompt.
  c.prompts_per_shard = 512
  c.format = "jsonl"

  c.rewards = dict(
    accuracy=1.0,
    thought=0.0,
    language=0.0,
    repetition=dict(weight=0.0, size=20),
  )
  c.keep = dict(accuracy=1.0, thought=1.0, language=0.95, repetition=-0.5)
  c.grader = dict(num_workers=32, timeout=10.0)
  if variant == "rewritten":
    c.rewriter = dict(SERVER, parameters=dict(temperature=0.7))
  if variant in ("few_shot", "direct"):
    c.mesh = c.model = c.tokenizer = c.sampling = None
    c.template = "{question}"
    parameters = dict(temperature=1.0, max_tokens=32_768)
    c.teacher = dict(
      SERVER, parameters=parameters, deadline=3_600.0, max_failed=0.01
    )
    if variant == "direct":
      c.teacher.system = DIRECT
    else:  # Conversations with long thoughts, {"messages": [...]} a line.
      c.teacher.shots = ""
  if variant == "tiny":
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
    c.cpu_devices = 4
    c.mesh = dict(data=-1)
    path.set(str(importlib.resources.files("r1jax") / "base_r1"))
    c.model = dict(name="pretrained", path=path)
    c.sampling.update(
      num_slots=96, decode_steps=8, prompt_tokens=144, max_tokens=176
    )
    problems = dict(name="bilingual", tasks=tasks, seed=0)
    c.dataset = dict(problems, split="train", size=768)
    c.decontamination.against = dict(
      test=dict(problems, split="test", size=768)
    )
    c.prompts_per_shard = 192
    c.grader = dict(num_workers=2, timeout=5.0)
  return c
