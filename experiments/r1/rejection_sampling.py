r"""Rejection sampling: the reasoning samples of DeepSeek-R1's SFT (stage 3).

    r1jax train --config=experiments/r1/rejection_sampling.py \
        --workdir=runs/r1/samples --config.model.path=MODEL \
        --config.dataset.path=problems.jsonl

From the paper (arXiv:2501.12948v2, appendix B.3.3): several samples of each
prompt from the checkpoint of the reasoning RL; only correct ones are kept, and
none whose thought mixes languages, has long paragraphs or blocks of code; at
most 32,768 tokens. No sample shares 10 words in a row with a question or
solution of the evaluation sets (D.1): name them in `decontamination.against`,
each a dataset section. Published result: about 600,000 samples (Table 5).

Ours, because the paper gives no values: 8 samples of a prompt at temperature 1,
the share of words in the language of the question (0.95), 200 words in a
paragraph, and no more than half of all sequences of 20 words repeated.

`:judge` is for problems that rules cannot grade: a model behind an endpoint
compares the answer with the reference (DeepSeek-V3 in the paper). `:tiny`
samples from the base of `experiments/r1/base.py` on a CPU.

MODEL is a directory of Hugging Face layout, with its tokenizer. Not run but
tiny.
"""

import importlib.resources

from ml_collections import ConfigDict, FieldReference

VARIANTS = ("rules", "judge", "tiny")


def get_config(variant="rules"):
  """The config of the run; the caller sets the paths."""
  if variant not in VARIANTS:
    raise ValueError(f"unknown variant {variant!r}; there is {VARIANTS}")
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
    max_tokens=32_768,
    temperature=1.0,
  )
  c.teacher = None  # Samples come from the model.
  c.rewriter = None

  c.dataset = dict(name="problems", path="")
  c.decontamination = dict(against={}, size=10)
  c.samples = 8  # Of each prompt.
  c.prompts_per_shard = 2_048
  c.format = "parquet"

  c.rewards = dict(
    accuracy=1.0,
    thought=0.0,
    language=0.0,
    paragraphs=dict(weight=0.0, max_words=200),
    prose=0.0,
    repetition=dict(weight=0.0, size=20),
  )
  c.keep = dict(
    accuracy=1.0,
    thought=1.0,
    language=0.95,
    paragraphs=1.0,
    prose=1.0,
    repetition=-0.5,
  )
  c.grader = dict(num_workers=32, timeout=10.0)
  if variant == "judge":
    server = dict(base_url="http://localhost:8000/v1", model="deepseek-v3")
    c.rewards.judge = dict(server, weight=1.0, deadline=600.0)
    c.keep.judge = 1.0
    del c.rewards.accuracy, c.keep.accuracy
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
    c.template = "r1_zero"
    c.cpu_devices = 4
    c.mesh = dict(data=-1)
    path.set(str(importlib.resources.files("r1jax") / "base_r1"))
    c.model = dict(name="pretrained", path=path)
    c.sampling.update(
      num_slots=96, decode_steps=8, prompt_tokens=144, max_tokens=176
    )
    problems = dict(name="bilingual", tasks=tasks, seed=0)
    c.dataset = dict(problems, split="train", size=1_536)
    c.decontamination.against = dict(
      test=dict(problems, split="test", size=768)
    )
    c.samples = 4
    c.prompts_per_shard = 192
    c.format = "jsonl"
    c.grader = dict(num_workers=2, timeout=5.0)
  return c
