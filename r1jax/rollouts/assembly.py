"""A rollout, put together from the steps of the engine."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from r1jax.rollouts import replay
from r1jax.rollouts.requests import Output
from r1jax.types import RecordedExperts, Rollout


class Assembly:
  """The completions of P prompts, whose requests are named (prompt, member)."""

  def __init__(
    self,
    prompts: Sequence[Sequence[int]],
    width: int,
    shape: tuple[int, ...],
    experts: RecordedExperts | None = None,
  ):
    """Nothing is sampled yet.

    Args:
      prompts: their tokens.
      width: Tp, of the array that holds them.
      shape: [P, G, Tc] of the completions.
      experts: a record of none yet; None for steps that do not record any.
    """
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, prompt in zip(tokens, prompts):
      row[: len(prompt)] = prompt
    self.done, self.tokens = 0, 0
    self.rollout = Rollout(
      prompts=tokens,
      prompt_lengths=np.array([len(prompt) for prompt in prompts], np.int32),
      completions=np.zeros(shape, np.int32),
      lengths=np.zeros(shape[:2], np.int32),
      finish=np.zeros(shape[:2], np.int32),
      sampled_mask=np.zeros(shape, bool),
      logprobs=np.zeros(shape, np.float32),
      experts=experts,
    )

  def take(self, output: Output) -> tuple[np.ndarray, np.ndarray]:
    """Adds a step; the prompts and members of the completions it has ended."""
    rollout = self.rollout
    prompt, member = np.array(output.ids, int).reshape(-1, 2).T
    steps = np.arange(output.tokens.shape[1])
    row, step = np.nonzero(steps < (output.count - output.start)[:, None])
    where = prompt[row], member[row], output.start[row] + step
    rollout.completions[where] = output.tokens[row, step]
    rollout.logprobs[where] = output.logprobs[row, step]
    rollout.sampled_mask[where] = output.sampled[row, step]
    ended = output.finish > 0
    where, count = (prompt[ended], member[ended]), output.count[ended]
    rollout.lengths[where], rollout.finish[where] = count, output.finish[ended]
    self.done += len(count)
    self.tokens += int(count.sum())
    self.rollout = self.rollout.replace(
      steps=rollout.steps + output.steps,
      idle=rollout.idle + output.steps * output.idle,
      experts=self._with_experts(output, prompt, member),
    )
    return where

  def _with_experts(
    self, output: Output, prompt: np.ndarray, member: np.ndarray
  ) -> RecordedExperts | None:
    """The record with what a step adds to it: where to, the host knows."""
    record, shape = self.rollout.experts, self.rollout.lengths.shape
    if record is None:
      return None
    prompts = record.prompts
    for groups, experts in output.prompt_experts:
      places = np.zeros((3, len(experts)), np.int32)
      lengths = self.rollout.prompt_lengths[[*groups]]
      places[:, : len(groups)] = groups, np.zeros_like(lengths), lengths
      prompts = replay.write(prompts, experts, places)
    places = np.zeros((3, len(output.experts)), np.int32)
    row = np.ravel_multi_index((prompt, member), shape)
    new = output.count - output.start
    places[:, output.slots] = row, output.start, new
    completions = replay.write(record.completions, output.experts, places)
    return dataclasses.replace(record, completions=completions, prompts=prompts)
