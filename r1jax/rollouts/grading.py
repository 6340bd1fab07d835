"""Groups of completions are graded as soon as they have ended."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from r1jax import rewards
from r1jax.data import chat
from r1jax.data.tokenizer import HuggingFace
from r1jax.rewards import Scores
from r1jax.rewards.pool.pool import GraderPool
from r1jax.rollouts.engine import Engine
from r1jax.runtime import distributed
from r1jax.types import (
  FINISH_STOP,
  Completion,
  Example,
  Params,
  Rollout,
  Tokenizer,
)

MAX_FEEDBACK = 400  # Bytes of it that are kept.
COUNTS = ("timeouts", "crashes")  # What `Scores.counts` counts.


def sample_graded(
  engine: Engine,
  params: Params,
  examples: Sequence[Example],
  group_size: int,
  tokenizer: Tokenizer,
  pool: GraderPool | None,
  spec: Mapping[str, Any],
  *,
  template: str,
  max_tokens: int,
  **options,
) -> tuple[Rollout, "GroupGrader"]:
  """A group of completions of each example, and the grader that reads them.

  Args:
    engine: samples.
    params: of the policy.
    examples: their prompts are sampled from [P].
    group_size: G
    tokenizer: of the policy.
    pool: grades; None grades in this process.
    spec: of the rewards.
    template: writes a prompt around a question; see `data.templates`.
    max_tokens: the limit that completions run under.
    **options: of the engine's call, such as `seed` and `round`.
  """
  grader = GroupGrader(
    examples,
    engine.hosts(len(examples)),
    group_size,
    tokenizer,
    max_tokens,
    pool,
    spec,
    prefill=chat.prefill(template, tokenizer),
  )
  rollout = engine(
    params,
    chat.encode_prompts(examples, template, tokenizer),
    group_size,
    max_tokens=max_tokens,
    finished=grader.take,
    **options,
  )
  return rollout, grader


class GroupGrader:
  """Grades the groups of one call of the engine while it samples.

  Every group is decoded and graded by one host; `scores` gathers the rewards of
  all hosts.
  """

  def __init__(
    self,
    examples: Sequence[Example],
    graders: np.ndarray,
    group_size: int,
    tokenizer: Tokenizer,
    max_tokens: int,
    pool: GraderPool | None,
    spec: Mapping[str, Any],
    prefill: str = "",
  ):
    """Nothing is graded yet.

    Args:
      examples: of the groups [P].
      graders: the host that grades each group [P].
      group_size: G
      tokenizer: decodes completions.
      max_tokens: the limit that completions run under.
      pool: grades; None grades in this process.
      spec: of the rewards.
      prefill: what the template wrote of every completion.
    """
    self._examples, self._size = examples, group_size
    self._tokenizer, self._max_tokens = tokenizer, max_tokens
    self._pool, self._spec, self._prefill = pool, spec, prefill
    self._missing = np.full(len(examples), group_size)
    self._graders = graders
    self._written, self._pending = {}, {}

  def take(self, rollout: Rollout, where: tuple[np.ndarray, np.ndarray]):
    """Takes completions that have ended: their prompts and group members."""
    np.subtract.at(self._missing, where[0], 1)
    own = self._graders == jax.process_index()
    for p in np.unique(where[0]).tolist():
      if own[p] and not self._missing[p]:
        self._pending[p] = rewards.submit(
          [self._examples[p]] * self._size,
          self._read(rollout, p),
          pool=self._pool,
          group_size=self._size,
          **self._spec,
        )

  def texts(
    self, rollout: Rollout, *, read_all: bool = False
  ) -> tuple[list[Example], list[Completion | None]]:
    """Examples and completions, group after group.

    A completion that another host grades is None; with `read_all`, the first
    host reads those too.
    """
    read_all &= distributed.is_first()
    written = []
    for p in range(len(self._examples)):
      known = read_all or self._graders[p] == jax.process_index()
      written += self._read(rollout, p) if known else [None] * self._size
    return [e for e in self._examples for _ in range(self._size)], written

  def scores(self) -> Scores:
    """Waits for the rewards of all groups; the same on every host."""
    names = [*dict.fromkeys(term.name for term in rewards.check(**self._spec))]
    shape = (1 + len(names), len(self._examples), self._size)
    grades, counts = np.full(shape, np.nan), np.zeros(len(COUNTS), int)
    applies = np.zeros(shape, bool)
    said = np.zeros(shape[1:], f"S{MAX_FEEDBACK}")
    for p, wait in self._pending.items():
      of_group = wait()
      said[p] = [text.encode(errors="replace") for text in of_group.feedback]
      grades[0, p] = of_group.total
      for i, name in enumerate(names, 1):
        grades[i, p] = of_group.parts[name]
        applies[i, p] = of_group.applies[name]
      counts += [of_group.counts[name] for name in COUNTS]
    # From each host the groups that it graded, NaN among them.
    every = np.arange(len(self._examples))
    gather = lambda x: (
      distributed.all_gather(x)[self._graders, :, every]
      .swapaxes(0, 1)
      .reshape(shape[0], -1)
    )
    grades, applies = gather(grades), gather(applies)
    counts = distributed.all_gather(counts).sum(axis=0)
    said = distributed.all_gather(said)[self._graders, every]
    return Scores(
      grades[0],
      dict(zip(names, grades[1:])),
      dict(zip(COUNTS, counts.tolist())),
      [text.decode(errors="ignore") for text in said.flat],
      dict(zip(names, applies[1:])),
    )

  def _read(self, rollout: Rollout, p: int) -> list[Completion]:
    if p not in self._written:
      self._written[p] = completions(
        rollout, p, self._tokenizer, self._max_tokens, self._prefill
      )
    return self._written[p]


def completions(
  rollout: Rollout,
  p: int,
  tokenizer: Tokenizer,
  max_tokens: int,
  prefill: str = "",
) -> list[Completion]:
  """The completions of a prompt as text, after what the template wrote."""
  lengths = rollout.lengths[p].tolist()
  texts = decode_batch(
    tokenizer,
    [ids[:length] for ids, length in zip(rollout.completions[p], lengths)],
  )
  return [
    Completion(
      text=prefill + text,
      num_tokens=length,
      max_tokens=max_tokens,
      finish="stop" if finish == FINISH_STOP else "length",
      prefill=prefill,
    )
    for text, length, finish in zip(texts, lengths, rollout.finish[p])
  ]


def decode_batch(
  tokenizer: Tokenizer, sequences: Sequence[np.ndarray]
) -> list[str]:
  """The text of each sequence, by the tokenizer's own batches if it has any."""
  if isinstance(tokenizer, HuggingFace):
    return tokenizer.decode_batch(sequences)
  return [tokenizer.decode(ids.tolist()) for ids in sequences]
