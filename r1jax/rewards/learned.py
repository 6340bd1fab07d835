"""Rewards that a model has learned: helpfulness and safety.

DeepSeek-R1 (arXiv:2501.12948), section 3.1. Neither is trained here: whoever
holds the parameters passes a function, so that a reward needs no JAX.
"""

import math
from collections.abc import Callable, Sequence

from r1jax.rewards.judge import summary
from r1jax.types import Completion, Example

# A trained model with its parameters and its tokenizer: a score for each
# (prompt, text), higher for better, on a scale of its own. A preference model
# learns from pairs, the difference of two scores being the log-odds that the
# first is preferred; a safety model from single texts, the score being the
# log-odds that the text is safe.
RewardModel = Callable[[Sequence[tuple[str, str]]], Sequence[float]]


def helpfulness(
  model: RewardModel, pairs: Sequence[tuple[Example, Completion]]
) -> list[float | None]:
  """The score of each final summary; the thoughts are not shown.

  Without an end to the thoughts the summary is empty, and scored as such. None
  where the model's score is not finite.
  """
  return _scores(model, [(e.prompt, summary(c)) for e, c in pairs])


def safety(
  model: RewardModel, pairs: Sequence[tuple[Example, Completion]]
) -> list[float | None]:
  """The score of each whole completion, thoughts included; None as above."""
  return _scores(model, [(e.prompt, c.text) for e, c in pairs])


def _scores(
  model: RewardModel, texts: Sequence[tuple[str, str]]
) -> list[float | None]:
  scores = [float(score) for score in model(texts)]
  if len(scores) != len(texts):
    raise ValueError(
      f"the reward model gave {len(scores)} scores for {len(texts)} texts"
    )
  return [score if math.isfinite(score) else None for score in scores]
