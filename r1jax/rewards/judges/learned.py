"""Rewards from trained reward models: helpfulness and safety.

DeepSeek-R1 (arXiv:2501.12948v2), section 3.1. A config names the model by its
path, and the trainer passes it as a function (`training.scorer`), so that this
module needs no JAX:

    rewards=dict(safety=dict(weight=0.1, path="runs/safety/model"))

    rewards.score(..., accuracy=1.0, safety=dict(weight=1.0, model=model))
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from r1jax.rewards.judges.judge import summary
from r1jax.text import Completion, Example

# A trained model with its parameters and its tokenizer. It returns a score for
# each (prompt, text); higher is better. The difference of two scores of a
# preference model is the log-odds that the first text is preferred. The score
# of a safety model is the log-odds that the text is safe.
RewardModel = Callable[[Sequence[tuple[str, str]]], Sequence[float]]
NAMES = ("helpfulness", "safety")  # Of these rewards.


def helpfulness(
  example: Example,
  completion: Completion,
  *,
  model: RewardModel | None = None,
  path: str | None = None,
  dtype: Any = "bfloat16",
) -> float | None:
  """Returns the model's score of the final summary, without the thoughts.

  Without </think> the summary is empty, and is scored as an empty text. None if
  the score is not finite.

  Args:
    example: whose prompt is answered.
    completion: its answer.
    model: computes the score.
    path: in a config, the directory of the model; see `training.scorer`.
    dtype: of its parameters there.
  """
  del dtype
  wait = start_helpfulness([(example, completion)], model=model, path=path)
  return wait()[0]


def safety(
  example: Example,
  completion: Completion,
  *,
  model: RewardModel | None = None,
  path: str | None = None,
  dtype: Any = "bfloat16",
) -> float | None:
  """Returns the model's score of the whole completion, with the thoughts.

  None if the score is not finite. The arguments are those of `helpfulness`.
  """
  del dtype
  wait = start_safety([(example, completion)], model=model, path=path)
  return wait()[0]


def start_helpfulness(
  pairs: Sequence[tuple[Example, Completion]],
  *,
  model: RewardModel | None = None,
  path: str | None = None,
  dtype: Any = "bfloat16",
) -> Callable[[], list[float | None]]:
  """Returns a function that computes the `helpfulness` of all pairs at once."""
  del dtype
  return _start(model, path, [(e.prompt, summary(c)) for e, c in pairs])


def start_safety(
  pairs: Sequence[tuple[Example, Completion]],
  *,
  model: RewardModel | None = None,
  path: str | None = None,
  dtype: Any = "bfloat16",
) -> Callable[[], list[float | None]]:
  """Returns a function that computes the `safety` of all pairs at once."""
  del dtype
  return _start(model, path, [(e.prompt, c.text) for e, c in pairs])


def paths_of(spec: Mapping[str, Any]) -> Iterator[str]:
  """The paths of the reward models in the rewards of a config."""
  for name, entry in spec.items():
    if isinstance(entry, Mapping):
      if name in NAMES and "path" in entry:
        yield entry["path"]
      else:
        yield from paths_of(entry)


def _start(
  model: RewardModel | None, path: str | None, texts: Sequence[tuple[str, str]]
) -> Callable[[], list[float | None]]:
  if not callable(model) and (model is not None or path is None):
    raise ValueError(
      "set path to the directory of a reward model, or model to a function of "
      f"texts; got {model!r}"
    )

  def finish() -> list[float | None]:
    if model is None:
      raise ValueError(f"nothing has loaded the reward model in {path}")
    # Also without texts: a model on several hosts waits for all of them.
    scores = [float(score) for score in model(texts)]
    if len(scores) != len(texts):
      raise ValueError(
        f"the reward model returned {len(scores)} scores for {len(texts)} texts"
      )
    return [score if math.isfinite(score) else None for score in scores]

  return finish
