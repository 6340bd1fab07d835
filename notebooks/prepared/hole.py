"""The demo with a reward that has a hole: it pays for mentioning the answer."""

import r1jax


def mentions(example, completion):
  """1.0 if the right answer occurs anywhere in the text."""
  return float(example.answer in completion.text)


def get_config():
  """The config of the run."""
  config = r1jax.load_config("experiments/demo.py")
  config.rewards = {"hole:mentions": 1.0, "accuracy": 0.0, "format": 0.0}
  return config
