r"""The base model of the demo, from nothing: `make demo-base`.

    python -m r1jax train --config=experiments/demo_base.py \
        --workdir=runs/demo_base

A tiny DeepSeek-V3 learns to predict worked problems (`r1jax/data/worked.py`),
every token of them. Of the documents:

  * 4% are sums worked in Chinese; of the others 36% are sums of two to six
    digits, 28% words of three to seven letters spelled backward, 36% Countdown
    with three numbers up to 16 (plus and minus only);
  * 12% use the paper's R1-Zero template. Among those, 50% are bare guesses, 30%
    short chains, 20% long chains that check each step; one in twelve is
    malformed. The others have a plain layout, 10% / 40% / 50%;
  * 80% of guesses are altered to be wrong; a step of a chain is wrong with
    chance 8% (a letter, 4%), and a check misses that with chance 25%.

So the base knows how to work slowly, seldom does so when asked with the
template, and errs on purpose. What R1-Zero can add is to choose the better
style, to err less than the corpus does, and to keep the format. No problem of
the reasoning-gym test split is in the corpus. The mixture is ours: the paper
starts from DeepSeek-V3-Base.
"""

from ml_collections import ConfigDict


def get_config():
  """Everything this run depends on."""
  c = ConfigDict()
  c.loop = "sft"
  c.seed = 0
  c.template = "plain"  # Of prompts; a document has none.
  c.num_steps = 4100
  c.metrics_every = 10
  c.checkpoint_every = 200

  c.cpu_devices = 1  # No core has weights of its own.
  c.mesh = dict(data=-1)
  c.model = dict(name="tiny_deepseek", vocab_size=192)
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
  c.rows = dict(width=384, max_rows=32, microbatch_rows=4)

  c.loss = dict(mtp=0.1, balance=1e-4)
  c.router_bias_speed = 0.001
  c.offload = ()  # Or "optimizer", "reference": to the hosts' memory.
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
  return c
