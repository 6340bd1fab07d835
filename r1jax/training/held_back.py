"""The loss on examples that a run of SFT does not learn."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from r1jax import data
from r1jax.data.demonstrations import Text
from r1jax.types import Batch, Params

SEED = 0  # Of the draw of examples, which is the same in every evaluation.


class Evaluation:
  """Measures the negative log-likelihood of held-back texts.

  Args:
    loss: `loss(params, batch) -> (scalar, metrics)`, as for an update.
    to_batches: makes microbatches of texts.
    texts: of the held-back examples.
    every: steps between evaluations; 0 for none.
  """

  def __init__(
    self,
    loss: Callable[[Params, Batch], Any],
    to_batches: Callable[[Sequence[Text]], list[Batch]],
    texts: Sequence[Text],
    every: int,
  ):
    self._every, self._texts, self._to_batches = every, texts, to_batches
    self._nll = jax.jit(lambda *arguments: loss(*arguments)[1]["loss/nll"])

  def is_due(self, step: int) -> bool:
    """Whether to evaluate after so many steps."""
    return self._every > 0 and step % self._every == 0

  def __call__(self, params: Params) -> dict[str, float]:
    """The metrics of the held-back texts; see `metrics.names`."""
    nll = 0.0
    for batch in self._to_batches(self._texts):
      nll += float(self._nll(params, batch))
    return {"eval/nll": nll, "eval/texts": len(self._texts)}


def evaluation(
  loss: Callable[[Params, Batch], Any],
  to_batches: Callable[[Sequence[Text]], list[Batch]],
  read: Callable[..., list[Text]],
  /,
  *,
  every: int,
  dataset: Mapping[str, Any] | None = None,
  examples: int = 0,
) -> Evaluation:
  """The evaluation that a config section describes.

  Args:
    loss: see `Evaluation`, also for the next.
    to_batches: makes microbatches of texts.
    read: `read(dataset, count=..., seed=..., step=...)` returns texts that fit.
    every: steps between evaluations; 0 for no evaluation.
    dataset: the section of a dataset of which nothing is learned.
    examples: the number of its examples to use.

  Raises ValueError for more examples than there are.
  """
  if not every:
    return Evaluation(loss, to_batches, (), 0)
  held_back = data.load(**(dataset or {}))
  if not 0 < examples <= len(held_back):
    raise ValueError(
      f"evaluation.examples is {examples}, but evaluation.dataset has "
      f"{len(held_back)}"
    )
  texts = read(held_back, count=examples, seed=SEED, step=0)
  return Evaluation(loss, to_batches, texts, every)
