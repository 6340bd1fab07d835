r"""The base model of the demo, trained from scratch: `make demo-base`.

    python -m r1jax train --config=experiments/demo_base.py \
        --workdir=runs/demo_base

A tiny DeepSeek-V3 learns to predict every token of worked problems
(`r1jax/data/worked.py`). Of the documents:

  * 4% are sums worked in Chinese. Of the others, 36% are sums of two to six
    digits, 28% are words of three to seven letters spelled backward, and 36%
    are Countdown with three numbers up to 16 (plus and minus only).
  * 12% use the R1-Zero template of the paper. Of those, 50% are bare guesses,
  30%
    short chains, and 20% long chains that check each step; one in twelve is
    malformed. The others have a plain layout, with shares of 10%, 40% and 50%.
  * 80% of the guesses are changed to be wrong. A step of a chain is wrong with
    probability 8% (a letter with 4%), and a check misses this with 25%.

The base model can therefore work step by step, but rarely does so with the
template, and it makes mistakes. R1-Zero can choose the better style, make fewer
mistakes than the corpus, and keep to the format. No problem of the
reasoning-gym test split is in the corpus. The mixture is ours; the paper starts
from DeepSeek-V3-Base.
"""

from ml_collections import ConfigDict


def get_config():
  """The config of the run."""
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
    name="fresh", preset_name="tiny_deepseek", seed=0, vocab_size=192
  )
  c.tokenizer = dict(documents=20_000, word_share=0.002)
  c.dataset = dict(
    name="worked",
    size=1_000_000,
    seed=0,
    template_share=0.12,
    template_styles=dict(guess=0.5, short=0.3, long=0.2),
    other_styles=dict(guess=0.1, short=0.4, long=0.5),
    wrong_guess=0.8,
    mistake=0.08,
    missed_check=0.25,
    malformed=0.08,
    chinese_share=0.04,
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
  return c
