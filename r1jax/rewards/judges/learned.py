"""Rewards that a model has learned: helpfulness and safety.

DeepSeek-R1 (arXiv:2501.12948), section 3.1. Neither is trained here: whoever
holds the parameters passes a function, so that a reward needs no JAX:

    rewards.score(..., accuracy=1.0, safety=dict(weight=1.0, model=model))
"""

import math
from collections.abc import Callable, Sequence

from r1jax.rewards.judges.judge import summary
from r1jax.text import Completion, Example

# A trained model with its parameters and its tokenizer: a score for each
# (prompt, text), higher for better, on a scale of its own. A preference model
# learns from pairs, the difference of two scores being the log-odds that the
# first is preferred; a safety model from single texts, the score being the
# log-odds that the text is safe.
RewardModel = Callable[[Sequence[tuple[str, str]]], Sequence[float]]


def helpfulness(
  example: Example, completion: Completion, *, model: RewardModel
) -> float | None:
  """The score of the final summary; the thoughts are not shown.

  Without an end to the thoughts the summary is empty, and scored as such. None
  if the model's score is not finite.
  """
  return start_helpfulness([(example, completion)], model=model)()[0]


def safety(
  example: Example, completion: Completion, *, model: RewardModel
) -> float | None:
  """The score of the whole completion, thoughts included; None as above."""
  return start_safety([(example, completion)], model=model)()[0]


def start_helpfulness(
  pairs: Sequence[tuple[Example, Completion]], *, model: RewardModel
) -> Callable[[], list[float | None]]:
  """The `helpfulness` of all pairs in one batch, when the result is called."""
  return _start(model, [(e.prompt, summary(c)) for e, c in pairs])


def start_safety(
  pairs: Sequence[tuple[Example, Completion]], *, model: RewardModel
) -> Callable[[], list[float | None]]:
  """The `safety` of all pairs in one batch, when the result is called."""
  return _start(model, [(e.prompt, c.text) for e, c in pairs])


def _start(
  model: RewardModel, texts: Sequence[tuple[str, str]]
) -> Callable[[], list[float | None]]:
  if not callable(model):
    raise ValueError(f"model must be a function of texts, got {model!r}")

  def finish() -> list[float | None]:
    scores = [float(score) for score in model(texts)] if texts else []
    if len(scores) != len(texts):
      raise ValueError(
        f"the reward model gave {len(scores)} scores for {len(texts)} texts"
      )
    return [score if math.isfinite(score) else None for score in scores]

  return finish
