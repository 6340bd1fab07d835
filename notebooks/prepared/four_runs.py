"""Four short runs for notebook 6: a healthy one, and three with a fault each.

The faults are set on purpose. README.md has the commands; `steps` is the reward
of the last run.
"""

import r1jax

FAULTS = {
  "healthy": {},
  "rate_too_high": {"optimizer.learning_rate": 2e-3},  # The demo has 2e-4.
  "limit_too_low": {"sampling.max_tokens": 40},  # The demo has 160.
  "reward_with_a_hole": {},  # See `get_config`.
}


def steps(example, completion):
  """The number of steps in the thought: it is meant to reward reasoning."""
  return completion.text.partition("</think>")[0].count("=")


def get_config(name):
  """The config of the run `name`: the demo, shorter, with one fault."""
  config = r1jax.load_config(
    "experiments/demo.py",
    {
      "cpu_devices": 1,
      "num_steps": 24,
      "prompts_per_round": 12,
      "checkpoint_every": 4,
      "model.path": "r1jax/base",
      "tokenizer.path": "r1jax/base",
      "evaluation.every": 24,
      "evaluation.problems": 16,
      "evaluation.samples": 4,
    }
    | FAULTS[name],
  )
  config.evaluation.larger = None
  if name == "reward_with_a_hole":
    config.rewards = {"accuracy": 1.0, "format": 1.0, "four_runs:steps": 1.0}
  return config
