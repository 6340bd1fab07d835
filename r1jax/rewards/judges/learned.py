"""Rewards from trained reward models: helpfulness and safety.

DeepSeek-R1 (arXiv:2501.12948), section 3.1. The caller passes the model as a
function, so that this module needs no JAX:

    rewards.score(..., accuracy=1.0, safety=dict(weight=1.0, model=model))
"""

import math
from collections.abc import Callable, Sequence

from r1jax.rewards.judges.judge import summary
from r1jax.text import Completion, Example

# A trained model with its parameters and its tokenizer. It returns a score for
# each (prompt, text); higher is better. The difference of two scores of a
# preference model is the log-odds that the first text is preferred. The score
# of a safety model is the log-odds that the text is safe.
RewardModel = Callable[[Sequence[tuple[str, str]]], Sequence[float]]


def helpfulness(
  example: Example, completion: Completion, *, model: RewardModel
) -> float | None:
  """Returns the model's score of the final summary, without the thoughts.

  Without </think> the summary is empty, and is scored as an empty text. None if
  the score is not finite.
  """
  return start_helpfulness([(example, completion)], model=model)()[0]


def safety(
  example: Example, completion: Completion, *, model: RewardModel
) -> float | None:
  """Returns the model's score of the whole completion, with the thoughts.

  None if the score is not finite.
  """
  return start_safety([(example, completion)], model=model)()[0]


def start_helpfulness(
  pairs: Sequence[tuple[Example, Completion]], *, model: RewardModel
) -> Callable[[], list[float | None]]:
  """Returns a function that computes the `helpfulness` of all pairs at once."""
  return _start(model, [(e.prompt, summary(c)) for e, c in pairs])


def start_safety(
  pairs: Sequence[tuple[Example, Completion]], *, model: RewardModel
) -> Callable[[], list[float | None]]:
  """Returns a function that computes the `safety` of all pairs at once."""
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
        f"the reward model returned {len(scores)} scores for {len(texts)} texts"
      )
    return [score if math.isfinite(score) else None for score in scores]

  return finish
