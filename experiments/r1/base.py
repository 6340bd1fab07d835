r"""The base model of all stages of R1 at a laptop's scale: `make r1-base`.

    python -m r1jax train --config=experiments/r1/base.py --workdir=runs/r1_base

A tiny DeepSeek-V3 learns to predict every token of documents in English and
Chinese (`r1jax/data/corpus.py`), half of them in each. Of the documents:

  * 85% are the worked problems of the demo's base: sums of two to six digits,
    words of three to seven letters spelled backward, and Countdown with three
    numbers up to 16. A step of a thought is in the other language with
    probability 30%.
  * 15% are general requests with an answer: greetings, thanks, advice, a
    sentence about a thing, questions about the model itself, and requests to
    refuse. Each of six faults is in an answer with probability 20%.
  * 12% use the R1-Zero template of the paper. Of the worked ones among them,
    50% are bare guesses, 30% short chains, and 20% long chains that check each
    step; one in twelve is malformed. The others have a plain layout, with
    shares of 10%, 40% and 50%.
  * Mistakes are as frequent as in `experiments/demo_base.py`.

R1-Zero can therefore become right and keep to the format, while its thoughts
stay mixed: that is left to the later stages, and so is the quality of general
answers. No problem or request of a test split is in the corpus. The mixture is
ours; the paper starts from DeepSeek-V3-Base.

`base.py:qwen2` and `:llama` are the bases of two dense students, with the
tokenizer of the first, and a tenth of its steps.
"""

import importlib.resources

from ml_collections import ConfigDict

VARIANTS = ("deepseek", "qwen2", "llama")


def get_config(variant="deepseek"):
  """The config of the run."""
  if variant not in VARIANTS:
    raise ValueError(f"unknown variant {variant!r}; there is {VARIANTS}")
  c = ConfigDict()
  c.loop = "sft"
  c.seed = 0
  c.template = "plain"  # Of prompts; a document has none.
  c.num_steps = 4100
  c.metrics_every = 10
  c.checkpoint_every = 200

  c.cpu_devices = 1  # One copy of the weights; matmuls use all cores.
  c.mesh = dict(data=-1)
  c.model = dict(
    name="fresh", preset_name=f"tiny_{variant}", seed=0, vocab_size=512
  )
  c.tokenizer = dict(documents=20_000, word_share=0.002)
  c.dataset = dict(
    name="corpus",
    size=1_000_000,
    seed=0,
    chinese=0.5,
    mixing=0.3,
    template_share=0.12,
    template_styles=dict(guess=0.5, short=0.3, long=0.2),
    other_styles=dict(guess=0.1, short=0.4, long=0.5),
    wrong_guess=0.8,
    mistake=0.08,
    missed_check=0.25,
    malformed=0.08,
    general_share=0.15,
    fault=0.2,
  )
  c.batch_examples = 48
  c.rows = dict(widths=(384,), shard_rows=2)

  c.aggregation = dict(name="token_mean")
  c.loss = dict(mtp=0.1, balance=1e-4)
  c.router_bias_speed = 0.001
  c.offload = ()  # "optimizer" is kept in host memory.
  c.optimizer = dict(
    learning_rate=3e-3,
    warmup_steps=100,
    decay_steps=2700,
    final_share=0.05,
    restart_rate=1e-3,
    restart_steps=1300,
    b1=0.9,
    b2=0.95,
    weight_decay=0.1,
    max_grad_norm=1.0,
  )
  c.teacher = dict()  # None.
  c.evaluation = dict(every=0)
  if variant != "deepseek":
    c.cpu_devices = 4
    c.rows.shard_rows = 1
    c.num_steps = 400
    c.tokenizer = dict(path=str(importlib.resources.files("r1jax") / "base_r1"))
    c.loss = dict(mtp=0.0, balance=0.0)
    c.router_bias_speed = 0.0
    c.optimizer.update(warmup_steps=20, decay_steps=400)
    del c.optimizer.restart_rate, c.optimizer.restart_steps
  return c
