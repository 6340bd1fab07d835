"""A rollout, put together from the steps of the engine."""

from collections.abc import Sequence

import numpy as np

from r1jax.rollouts.requests import Output
from r1jax.types import Rollout


class Assembly:
  """The completions of P prompts, whose requests are named (prompt, member)."""

  def __init__(
    self, prompts: Sequence[Sequence[int]], width: int, shape: tuple[int, ...]
  ):
    """Nothing is sampled yet.

    Args:
      prompts: their tokens.
      width: Tp, of the array that holds them.
      shape: [P, G, Tc] of the completions.
    """
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, prompt in zip(tokens, prompts):
      row[: len(prompt)] = prompt
    self._shape, self.done, self.tokens = shape, 0, 0
    self.rollout = Rollout(
      prompts=tokens,
      prompt_lengths=np.array([len(prompt) for prompt in prompts], np.int32),
      completions=np.zeros(shape, np.int32),
      lengths=np.zeros(shape[:2], np.int32),
      finish=np.zeros(shape[:2], np.int32),
      sampled_mask=np.zeros(shape, bool),
      logprobs=np.zeros(shape, np.float32),
    )

  def take(self, output: Output) -> tuple[np.ndarray, np.ndarray]:
    """Adds a step; the prompts and members of the completions it has ended."""
    rollout = self.rollout
    for prompt, facts in output.prompts.items():
      if facts.experts is not None:
        self._keep_experts(prompt, facts.experts)
    prompt, member = np.array(output.ids, int).reshape(-1, 2).T
    steps = np.arange(output.tokens.shape[1])
    row, step = np.nonzero(steps < (output.count - output.start)[:, None])
    where = prompt[row], member[row], output.start[row] + step
    rollout.completions[where] = output.tokens[row, step]
    rollout.logprobs[where] = output.logprobs[row, step]
    rollout.sampled_mask[where] = output.sampled[row, step]
    if output.experts is not None:
      self.rollout.experts[where] = output.experts[row, step]
    ended = output.finish > 0
    where, count = (prompt[ended], member[ended]), output.count[ended]
    rollout.lengths[where], rollout.finish[where] = count, output.finish[ended]
    self.done += len(count)
    self.tokens += int(count.sum())
    self.rollout = self.rollout.replace(
      steps=self.rollout.steps + output.steps,
      idle=self.rollout.idle + output.steps * output.idle,
    )
    return where

  def _keep_experts(self, prompt: int, experts: np.ndarray) -> None:
    """Puts the experts of a prompt in their place."""
    if self.rollout.experts is None:
      size, tail = self.rollout.prompts.shape, experts.shape[1:]
      self.rollout = self.rollout.replace(
        experts=np.zeros((*self._shape, *tail), np.int16),
        prompt_experts=np.zeros((*size, *tail), np.int16),
      )
    self.rollout.prompt_experts[prompt, : len(experts)] = experts
