"""The rollout engine: a fixed number of slots, refilled as completions finish.

    state = engine.add(engine.start(params), requests)
    while not state.done:
      state, output = engine.step(state)

`Engine.__call__` does this for G completions of each of P prompts. A prompt is
read when the first of its completions begins, together with those that come
next, and its cache is copied into the slots of its completions, or read by
several neighbouring slots together. The tokens with which all prompts begin
(the template) are read once and are never copied.

What the host decides depends on what all hosts know: they run the same
programs. The mesh splits the slots into shards, each with its own groups of
requests, so that the completions of a prompt end on the host that grades them.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Hashable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from r1jax.models.transformer import Transformer
from r1jax.models.weights import used_axes
from r1jax.parallel import reshard, sharding
from r1jax.parallel.mesh import row_shards
from r1jax.rollouts import replay
from r1jax.rollouts import slots as programs
from r1jax.rollouts.assembly import Assembly
from r1jax.rollouts.prompts import PREFILL, PromptReader, slots_per_prompt
from r1jax.rollouts.requests import (
  TOP_LOGPROBS,
  Output,
  Request,
  check,
  check_ids,
  check_settings,
  with_defaults,
)
from r1jax.rollouts.sampling import Needs, group_keys
from r1jax.rollouts.scheduler import Scheduler
from r1jax.rollouts.slots import Sampling
from r1jax.rollouts.state import EngineState
from r1jax.runtime import distributed
from r1jax.types import FINISH_LENGTH, Ints, Params, Rollout, Tokenizer


@dataclasses.dataclass(frozen=True)
class Engine:
  """Samples completions; made by `make_engine`."""

  model: Transformer
  tokenizer: Tokenizer
  sampling: Sampling
  prefix: tuple[int, ...]
  num_slots: int
  prompt_tokens: int
  max_tokens: int
  defaults: Request  # Settings of a request that has none of its own.

  def __call__(
    self,
    params: Params,
    prompts: Sequence[Sequence[int]],
    group_size: int,
    *,
    seed: int,
    round: int,
    evaluation: bool = False,
    max_tokens: Ints | int | None = None,
    progress: Callable[[int, int], None] = lambda done, tokens: None,
    finished: Callable[[Rollout, tuple], None] = lambda rollout, where: None,
  ) -> Rollout:
    """`group_size` completions of each prompt.

    Args:
      params: the weights of the policy, as `prepare` has made them.
      prompts: token ids; each begins with the prefix.
      group_size: G
      seed: of everything sampled.
      round: gives other completions of the same prompts.
      evaluation: draws from a stream that no round of training draws from, and
        records no experts.
      max_tokens: of each completion [P, G], or of all; None for the engine's.
      progress: called now and then with the number of finished completions and
        of the tokens in them.
      finished: called with the rollout so far, and which of its completions
        have just ended: their prompts and their members of the groups.

    Raises ValueError for a prompt that is longer than the window or does not
    begin with the prefix, and for limits beyond the engine's.
    """
    shape = (len(prompts), group_size)
    limits = self.max_tokens if max_tokens is None else max_tokens
    limits = np.broadcast_to(limits, shape)
    engine = self
    if evaluation:
      sampling = self.sampling._replace(record_experts=False)
      engine = dataclasses.replace(self, sampling=sampling)
    keys = group_keys(seed, round, shape, evaluation=evaluation)
    state = engine.add(
      engine.start(params, self._slots_per_prompt(group_size)),
      [
        Request((p, g), prompts[p], int(limits[p, g]), keys[p, g], group=p)
        for p, g in np.ndindex(shape)
      ],
    )
    width = self._reader.rollout_width(prompts)
    shape, experts = (*shape, self.max_tokens), None
    if engine.sampling.record_experts:
      experts = replay.empty(
        replay.shapes(self.model.config, self.sampling.mesh, shape, width)
      )
    made = Assembly(prompts, width, shape, experts)
    while not state.done:
      distributed.raise_if_interrupted()
      state, output = engine.step(state)
      ended = made.take(output)
      if len(ended[0]):
        finished(made.rollout, ended)
        progress(made.done, made.tokens)
    return made.rollout

  def start(self, params: Params, slots_per_prompt: int = 1) -> EngineState:
    """An engine without requests, which samples from these weights.

    Args:
      params: as `prepare` has made them.
      slots_per_prompt: neighbouring slots that read the cache of one prompt
        together. They also turn to another one together: a slot may wait for
        the others. With 1, each has a copy of its prompt's cache.
    """
    with jax.set_mesh(self.sampling.mesh):
      prefix, hidden, experts = programs.read_prefix(
        self.model,
        params,
        np.array(self.prefix, np.int32),
        record_experts=self.sampling.record_experts,
      )
    return EngineState(
      params=params,
      prefix=prefix,
      prefix_hidden=hidden,
      prefix_experts=experts,
      slots_per_prompt=slots_per_prompt,
      slots=programs.idle_slots(self.num_slots, self.sampling.steps),
      scheduler=Scheduler(self.shards, self.num_slots, slots_per_prompt),
      requests=[None] * self.num_slots,
    )

  def add(self, state: EngineState, requests: Sequence[Request]) -> EngineState:
    """The requests wait for slots; groups begin in the order they come in.

    Raises ValueError for a request that the engine cannot serve; those before
    it wait nevertheless.
    """
    for request in requests:
      request = with_defaults(request, self.defaults)
      check(request, self.prefix, self.prompt_tokens, self.max_tokens)
      check_ids(request.prompt, self.model.config.vocab_size)
      slot = state.places.get(request.id)
      under_way = slot is not None and state.slots.finish[slot] == 0
      if under_way or request.id in state.scheduler:
        raise ValueError(f"request {request.id!r} is under way already")
      others = state.scheduler.requests(request.group)
      if others and others[0].prompt is not request.prompt:
        if [*others[0].prompt] != [*request.prompt]:
          raise ValueError(
            f"request {request.id!r} is of group {request.group!r}, whose "
            "prompt is another one"
          )
      state.scheduler.add(request)
    return state

  def step(self, state: EngineState) -> tuple[EngineState, Output]:
    """Every slot goes on for some tokens, free ones with the next requests."""
    with jax.set_mesh(self.sampling.mesh):
      state, read = self._begin(state)
      slots, busy = state.slots, state.busy
      state.give_forced()
      settings = jax.tree.map(lambda x: x[busy], slots.settings)
      wanted = any(state.requests[slot].top_logprobs for slot in busy)
      needs = Needs.of(settings, TOP_LOGPROBS if wanted else 0)
      cache, record, experts = programs.decode(
        self.model,
        self.sampling._replace(needs=needs),
        state.params,
        state.prefix,
        state.cache,
        programs.to_table(slots),
      )
    state = dataclasses.replace(state, cache=cache)
    record = jax.tree.map(np.array, jax.device_get(record))
    sampled = np.arange(self.sampling.steps) >= slots.num_forced[:, None]
    texts = state.cut(record, sampled)
    output = Output(
      ids=[state.requests[slot].id for slot in busy],
      slots=busy,
      start=slots.count[busy],
      count=record.count[busy],
      finish=record.finish[busy],
      tokens=record.tokens[busy],
      sampled=sampled[busy],
      logprobs=np.where(sampled, record.logprobs, 0)[busy],
      top_ids=record.top_ids[busy],
      top_logprobs=record.top_logprobs[busy],
      texts=texts,
      prompts=read.scores,
      experts=experts,
      prompt_experts=read.experts,
      steps=int(record.steps),
      idle=state.scheduler.idle(busy),
    )
    state.advance(busy, output)
    return state, output

  def append(
    self, state: EngineState, id: Hashable, tokens: Sequence[int]
  ) -> EngineState:
    """The completion of request `id` goes on with these tokens.

    They are given, such as a tool's output, and come before anything that is
    sampled. A completion that has ended in the last step goes on as well.

    Raises ValueError for a request that has no slot any more or yet, and for
    more tokens than its limit leaves.
    """
    slot = state.places.get(id)
    if slot is None:
      raise ValueError(
        f"request {id!r} has no slot: it waits, was removed, or another one "
        "has its slot now"
      )
    check_ids(tokens, self.model.config.vocab_size)
    slots, queue = state.slots, state.forced.get(slot, [])
    left = int(slots.limit[slot] - slots.count[slot]) - len(queue)
    if len(tokens) > left:
      raise ValueError(
        f"{len(tokens)} tokens for request {id!r}, whose max_tokens "
        f"{slots.limit[slot]} leaves {left}"
      )
    if len(tokens):
      state.forced[slot] = [*queue, *tokens]
      slots.finish[slot] = 0
    return state

  def remove(
    self, state: EngineState, ids: Collection[Hashable]
  ) -> EngineState:
    """Forgets requests, waiting or under way, if there are any of these ids."""
    state.scheduler.remove(frozenset(ids))
    for id in ids:
      if (slot := state.places.pop(id, None)) is not None:
        state.slots.finish[slot] = FINISH_LENGTH
        state.requests[slot] = None
        state.forced.pop(slot, None)
        state.watches.pop(slot, None)
    return state

  def prepare(self, params: Params) -> Params:
    """The weights as the engine reads them, on its mesh and in its dtype.

    They may lie on another mesh of the same devices: one program moves them.
    """
    after, before = self.sampling.mesh, None
    lies = getattr(jax.tree.leaves(params)[0], "sharding", None)
    if isinstance(lies, NamedSharding) and lies.mesh.size == after.size:
      before = lies.mesh
    with jax.set_mesh(after):
      return programs.prepare(self.model, params, before, after)

  def moved(self, params: Params) -> int:
    """The bytes that a device gets from others when `prepare` moves these."""
    used = jax.eval_shape(
      functools.partial(programs.cast, self.model.config), params
    )
    of = sharding.tree_shardings(
      self.sampling.mesh, used_axes(self.model.config), used
    )
    return reshard.bytes_received(
      {name: params[name] for name in used}, used, of
    )

  @property
  def shards(self) -> int:
    """Parts of the slots; prompt p is with the completions of p % shards."""
    return row_shards(self.sampling.mesh)

  def hosts(self, num_prompts: int) -> np.ndarray:
    """The host that holds the completions of each prompt, to grade them."""
    prompts = np.arange(num_prompts)
    return sharding.row_hosts(self.sampling.mesh)[prompts % self.shards]

  def _slots_per_prompt(self, group_size: int) -> int:
    return slots_per_prompt(
      self.prompt_tokens,
      self.max_tokens,
      group_size,
      self.num_slots // self.shards,
    )

  @property
  def _reader(self) -> PromptReader:
    rows = min(PREFILL, self.num_slots)
    return PromptReader(
      model=self.model,
      sampling=self.sampling,
      prefix=self.prefix,
      rows=-(-rows // self.shards) * self.shards,
      prompt_tokens=self.prompt_tokens,
      max_tokens=self.max_tokens,
    )

  def _begin(self, state: EngineState):
    """The state with free slots filled, and what was learned of prompts."""
    slots = zip(state.requests, state.slots.finish)
    filled = state.scheduler.take(
      [None if finish else request.group for request, finish in slots]
    )
    reader, shares = self._reader, state.slots_per_prompt > 1
    for slot, request in filled:
      cached = 0 if shares else reader.length(request) - 1
      state.place(slot, request, cached, self.tokenizer)
    cache = reader.resized(state, filled)
    return reader.fill(state, cache, filled)


def make_engine(
  model: Transformer,
  tokenizer: Tokenizer,
  mesh: Mesh,
  prefix: Sequence[int],
  *,
  num_slots: int,
  decode_steps: int,
  prompt_tokens: int,
  max_tokens: int,
  temperature: float | int,
  top_p: float | int = 1.0,
  top_k: int = 0,
  record_experts: bool = False,
) -> Engine:
  """An engine for prompts that all begin with `prefix`.

  A cache has room for prompt_tokens + max_tokens in each slot, for half of
  that, a quarter, and so on, as the longest text under way asks for. In one
  size a completion is the same bit for bit whatever its neighbours and its
  slot; another size may show in the last bits.

  Args:
    model: its architecture.
    tokenizer: says which ids exist, and which end a completion.
    mesh: the slots are split over the axes that split rows.
    prefix: token ids; may be empty.
    num_slots: completions under way at once.
    decode_steps: tokens between two looks of the host.
    prompt_tokens: window for what follows the prefix in a prompt.
    max_tokens: of a completion, EOS included.
    temperature: of sampling, where a request has none of its own; 0 takes the
      most probable token, for evaluation.
    top_p: likewise; see `sampling.sample`. Below 1 for evaluation only.
    top_k: likewise. Anything but 0 is for evaluation only.
    record_experts: keeps on the devices which experts processed each token; see
      `replay`.
  """
  check_settings(temperature, top_p, top_k)
  if record_experts and not model.config.num_moe_layers:
    raise ValueError("record_experts is set, but the model has no experts")
  if num_slots % row_shards(mesh):
    raise ValueError(
      f"num_slots {num_slots} do not divide over the "
      f"{row_shards(mesh)} parts of the mesh that split rows; choose "
      "a multiple, or another mesh"
    )
  return Engine(
    model=model,
    tokenizer=tokenizer,
    sampling=Sampling(
      mesh=mesh,
      vocab_size=tokenizer.vocab_size,
      steps=decode_steps,
      record_experts=record_experts,
    ),
    prefix=tuple(int(i) for i in prefix),
    num_slots=num_slots,
    prompt_tokens=prompt_tokens,
    max_tokens=max_tokens,
    defaults=Request(
      id=None,
      prompt=(),
      max_tokens=max_tokens,
      temperature=temperature,
      top_p=top_p,
      top_k=top_k,
      stop_ids=tuple(int(i) for i in tokenizer.eos_ids),
    ),
  )
