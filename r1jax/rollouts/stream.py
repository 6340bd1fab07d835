"""One completion at a time, token by token, for whoever reads along."""

from collections.abc import Collection, Iterator, Sequence

import jax

from r1jax.models.transformer import Transformer
from r1jax.parallel.mesh import make_mesh
from r1jax.rollouts.engine import make_engine
from r1jax.rollouts.requests import Request
from r1jax.rollouts.sampling import group_keys
from r1jax.types import Params, Tokenizer


class Stream:
  """A client of an engine with one slot."""

  def __init__(
    self,
    model: Transformer,
    params: Params,
    tokenizer: Tokenizer,
    *,
    stop_ids: Collection[int],
    temperature: float,
    top_p: float = 1.0,
    seed: int = 0,
  ):
    """Nothing is computed but the place of the weights.

    Args:
      model: its architecture.
      params: its weights; those of NumPy are put on the device, once.
      tokenizer: says which ids exist; the model may have logits for more.
      stop_ids: any of them ends a completion.
      temperature: of sampling; 0 takes the most probable token.
      top_p: see `sampling.sample`.
      seed: of everything sampled.
    """
    self._longest = model.config.max_length
    self._engine = make_engine(
      model,
      tokenizer,
      make_mesh(data=1),
      (),
      num_slots=1,
      decode_steps=1,
      prompt_tokens=self._longest - 1,
      max_tokens=self._longest,
      temperature=temperature,
      top_p=top_p,
    )
    self._state = self._engine.start(jax.device_put(params))
    self._stop_ids, self._seed = tuple(stop_ids), seed

  def complete(
    self, prompt: Sequence[int], *, max_tokens: int, number: int = 0
  ) -> Iterator[int]:
    """The ids that follow `prompt`, as they come; the one that stops included.

    What is sampled depends on the prompt, the seed and the `number` of the
    completion. It ends with the longest text that the model was made for, too,
    and may be left at any token.
    """
    if len(prompt) >= self._longest:
      raise ValueError(
        f"the prompt has {len(prompt)} tokens, and the model was made for "
        f"texts of {self._longest}"
      )
    request = Request(
      "completion",
      prompt,
      max_tokens=min(max_tokens, self._longest - len(prompt)),
      key=group_keys(self._seed, number, (1, 1))[0, 0],
      stop_ids=self._stop_ids,
    )
    # The one before may have been left.
    state = self._engine.remove(self._state, [request.id])
    self._state = self._engine.add(state, [request])
    while not self._state.done:
      self._state, output = self._engine.step(self._state)
      yield int(output.tokens[0, 0])
