"""The rollout engine: a fixed number of slots, refilled as completions finish.

A prompt is read once and its cache copied into the slots of its G completions,
or, with `slots_per_prompt`, once for so many neighbouring slots, which then
read it together; the tokens with which all prompts begin (the template) are
read once per call and are never copied. Every few tokens the host takes what
was sampled, fills the slots that have finished with the next completions, and
gives the cache as much room as the longest needs. What it decides depends on
lengths and finish flags alone, which all hosts know: they all ask for the same
programs.

The mesh splits the slots into shards. Each has its own prompts and their queue,
so that the completions of a prompt end on one host, which grades them.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from r1jax.models.transformer import Transformer
from r1jax.models.weights import used_axes
from r1jax.parallel import reshard, sharding
from r1jax.parallel.mesh import row_shards
from r1jax.rollouts import slots as programs
from r1jax.rollouts.queues import Queues
from r1jax.rollouts.slots import Sampling, Slots
from r1jax.runtime import distributed
from r1jax.types import Ints, Params, Rollout, Tokenizer

PREFILL = 8  # Prompts that are read at once, or as many as rows have parts.
REFILL = 32  # Slots that are filled at once.


@dataclasses.dataclass(frozen=True)
class Engine:
  """Samples completions; make one with `make_engine`."""

  model: Transformer
  sampling: Sampling
  prefix: tuple[int, ...]
  num_slots: int
  prompt_tokens: int
  max_tokens: int
  kv_bucket: int
  slots_per_prompt: int

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
      evaluation: draws from a stream that no round of training draws from.
      max_tokens: of each completion [P, G], or of all; None for the engine's.
      progress: called now and then with the number of finished completions and
        of the tokens in them.
      finished: called with the rollout so far, and which of its completions
        have just ended: their prompts and their members of the groups.

    Raises ValueError for a prompt that is longer than the window or does not
    begin with the prefix, and for limits beyond the engine's.
    """
    shape = (len(prompts), group_size)
    limits = self._limits(max_tokens, shape)
    own, lengths = self._own_tokens(prompts)
    stream = dict(seed=seed, round=round, evaluation=evaluation)
    with jax.set_mesh(self.sampling.mesh):
      return self._complete(
        params, own, lengths, limits, stream, progress, finished
      )

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

  def _complete(
    self, params, own, lengths, limits, stream, progress, finished
  ) -> Rollout:
    """`__call__` on the engine's mesh, its arguments checked."""
    prefix, read, prompt_experts = self._read(params, own)
    out = self._empty_rollout(own, lengths, limits.shape[1], prompt_experts)

    # Who is in each slot: a prompt or -1, a member of its group, its length.
    source = np.full(self.num_slots, -1)
    member, count = np.zeros((2, self.num_slots), int)
    queues = Queues(
      self.shards, self.num_slots, self.slots_per_prompt, limits.shape
    )
    slots, done, tokens, steps, idle = None, 0, 0, 0, 0.0
    while True:
      distributed.raise_if_interrupted()
      # Free slots take the next completions.
      free, prompt, place = queues.take(np.flatnonzero(source < 0))
      source[free], member[free], count[free] = prompt, place, 0
      busy = np.flatnonzero(source >= 0)
      if not len(busy):
        return out.replace(steps=steps, idle=idle)
      limit = limits[source, member]  # Of idle slots, anything.
      final = np.minimum(count + self.sampling.steps, limit)
      before = 0 if self.shares else lengths[source] - 1
      longest = np.max((before + final)[busy])
      slots = self._resized(slots, int(longest), own.shape[1])
      slots = self._filled(
        slots,
        read,
        free,
        (source, member, last_of(own, lengths)[source], lengths[source], limit),
        stream,
      )

      # They all go on for some tokens, which the host puts in their places.
      slots, record = programs.decode(
        self.model, self.sampling, params, prefix, slots
      )
      record = jax.device_get(record)
      new = np.arange(self.sampling.steps) < (record.count - count)[:, None]
      slot, step = np.nonzero(new)
      where = source[slot], member[slot], count[slot] + step
      out.completions[where] = record.tokens[slot, step]
      out.logprobs[where] = record.logprobs[slot, step]
      out.sampled_mask[where] = True
      if out.experts is not None:
        out.experts[where] = record.experts[slot, step]
      count, steps = np.array(record.count), steps + int(record.steps)
      idle += int(record.steps) * queues.idle(busy)
      ended = busy[record.finish[busy] > 0]
      if len(ended):
        where = source[ended], member[ended]
        out.lengths[where] = count[ended]
        out.finish[where] = record.finish[ended]
        source[ended] = -1
        done, tokens = done + len(ended), tokens + int(count[ended].sum())
        finished(out, where)
        progress(done, tokens)

  @property
  def shares(self) -> bool:
    """Whether prompts have caches of their own, before those of slots."""
    return self.slots_per_prompt > 1

  @property
  def shards(self) -> int:
    """Parts of the slots; prompt p is with the completions of p % shards."""
    return row_shards(self.sampling.mesh)

  def hosts(self, num_prompts: int) -> np.ndarray:
    """The host that holds the completions of each prompt, to grade them."""
    prompts = np.arange(num_prompts)
    return sharding.row_hosts(self.sampling.mesh)[prompts % self.shards]

  def _limits(self, max_tokens, shape) -> np.ndarray:
    """Tokens that each completion may have [P, G]."""
    given = self.max_tokens if max_tokens is None else max_tokens
    limits = np.broadcast_to(np.asarray(given, np.int32), shape)
    if limits.size and not 0 < limits.min() <= limits.max() <= self.max_tokens:
      raise ValueError(
        f"max_tokens from {limits.min()} to {limits.max()} are not within 1 "
        f"and the engine's {self.max_tokens}"
      )
    return limits

  def _own_tokens(self, prompts) -> tuple[np.ndarray, np.ndarray]:
    """What follows the prefix in each prompt [P, Tq], and its lengths [P]."""
    start = len(self.prefix)
    for row, prompt in enumerate(prompts):
      if tuple(prompt[:start]) != self.prefix or len(prompt) == start:
        raise ValueError(f"prompt {row} does not begin with the template")
      if len(prompt) - start > self.prompt_tokens:
        raise ValueError(
          f"prompt {row} has {len(prompt) - start} tokens beyond the template, "
          f"and the window prompt_tokens is {self.prompt_tokens}; raise it, or "
          "filter the dataset"
        )
    lengths = np.array([len(prompt) - start for prompt in prompts], np.int32)
    width = room(int(lengths.max()), self.prompt_tokens, self.kv_bucket)
    own = np.zeros((len(prompts), width), np.int32)
    for row, prompt in zip(own, prompts):
      row[: len(prompt) - start] = prompt[start:]
    return own, lengths

  def _read(self, params, own):
    """The caches of the prefix and of all prompts, and the prompts' experts."""
    record = dict(record_experts=self.sampling.record_experts)
    prefix, experts = programs.read_prefix(
      self.model, params, np.array(self.prefix, np.int32), **record
    )
    read, chosen = [], []
    size = -(-PREFILL // self.shards) * self.shards
    for start in range(0, len(own), size):
      part = own[start : start + size]
      part = np.pad(part, ((0, size - len(part)), (0, 0)))
      cache, of_experts = programs.read_prompts(
        self.model, params, prefix, part, **record
      )
      read.append(cache)
      chosen.append(sharding.to_host(of_experts))
    read = programs.join(read)
    if not self.sampling.record_experts:
      return prefix, read, None
    chosen = np.concatenate(chosen)[: len(own)]
    if experts is not None:
      experts = sharding.to_host(experts)
      before = np.broadcast_to(experts, (len(own), *experts.shape[1:]))
      chosen = np.concatenate([before, chosen], axis=1)
    return prefix, read, chosen

  def _empty_rollout(self, own, lengths, group_size, prompt_experts) -> Rollout:
    """Nothing sampled yet."""
    start = np.tile(np.int32(self.prefix), (len(own), 1))
    shape = (len(own), group_size, self.max_tokens)
    experts = None
    if prompt_experts is not None:
      experts = np.zeros((*shape, *prompt_experts.shape[2:]), np.int16)
    return Rollout(
      prompts=np.concatenate([start, own], axis=1),
      prompt_lengths=lengths + len(self.prefix),
      completions=np.zeros(shape, np.int32),
      lengths=np.zeros(shape[:2], np.int32),
      finish=np.zeros(shape[:2], np.int32),
      sampled_mask=np.zeros(shape, bool),
      logprobs=np.zeros(shape, np.float32),
      experts=experts,
      prompt_experts=prompt_experts,
    )

  def _resized(self, slots: Slots | None, needed: int, prompt: int) -> Slots:
    """The slots with room for `needed` tokens each, and not much more.

    The longest prompt of the round has `prompt` tokens.
    """
    limit = self.max_tokens
    if not self.shares:
      limit, needed = limit + self.prompt_tokens, max(needed, prompt)
    size = room(needed, limit, self.kv_bucket)
    if slots is None:
      return programs.empty(
        self.model, self.num_slots, size, self.slots_per_prompt, prompt
      )
    if slots.cache.size == size:
      return slots
    return slots.replace(cache=programs.grow(slots.cache, size))

  def _filled(self, slots, read, free, columns, stream) -> Slots:
    """The slots with those `free` filled, `REFILL` at a time.

    `columns` say for every slot what `slots.fill` asks for.
    """
    for start in range(0, len(free), REFILL):
      part = free[start : start + REFILL]
      # Slots beyond the last are dropped.
      beyond = (0, REFILL - len(part))
      slot = np.pad(part, beyond, constant_values=self.num_slots)
      rest = [np.pad(column[part], beyond) for column in columns]
      rest = [column.astype(np.int32) for column in (slot, *rest)]
      slots = programs.fill(slots, read, *rest, **stream)
    return slots


def last_of(own: np.ndarray, lengths: np.ndarray) -> np.ndarray:
  """The last token of each row."""
  return own[np.arange(len(own)), lengths - 1]


def room(needed: int, limit: int, smallest: int) -> int:
  """`limit` halved as often as `needed` and `smallest` allow, rounded up.

  A cache comes in these sizes only: every other one is a program to compile.
  """
  least, size = max(needed, smallest), limit
  while size > least and (half := -(-size // 2)) >= least:
    size = half
  return size


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
  temperature: float,
  top_p: float = 1.0,
  top_k: int = 0,
  kv_bucket: int = 256,
  slots_per_prompt: int = 1,
  record_experts: bool = False,
) -> Engine:
  """An engine for prompts that all begin with `prefix`.

  Args:
    model: its architecture.
    tokenizer: says which ids exist, and which end a completion.
    mesh: the slots are split over the axes that split rows.
    prefix: token ids; may be empty.
    num_slots: completions under way at once.
    decode_steps: tokens between two looks of the host.
    prompt_tokens: window for what follows the prefix in a prompt.
    max_tokens: of a completion, EOS included.
    temperature: of sampling; 0 takes the most probable token, for evaluation.
    top_p: see `sampling.sample`; anything below 1 is for evaluation only.
    top_k: likewise; anything but 0 is for evaluation only.
    kv_bucket: the cache of a slot has room for prompt_tokens + max_tokens, for
      half of that, a quarter, and so on, as the longest text under way asks
      for it, but never for fewer tokens than this. In one size a completion
      is the same bit for bit whatever its neighbours and its slot; another
      size may show in the last bits.
    slots_per_prompt: neighbouring slots that serve one prompt at a time. Its
      cache is there once for all of them, and read once per step, which pays
      where prompts are long; but they turn to another prompt together, so that
      a slot waits for the others when no completion of theirs is left. With 1,
      each slot has a copy of its prompt's cache, and never waits.
    record_experts: keeps which experts worked on each token.
  """
  if temperature < 0:
    raise ValueError(f"temperature {temperature} is below 0")
  if not 0 < top_p <= 1:
    raise ValueError(f"top_p {top_p} is not within (0, 1]")
  if top_k < 0:
    raise ValueError(f"top_k {top_k} is below 0; 0 keeps all tokens")
  for name, value in dict(
    kv_bucket=kv_bucket, slots_per_prompt=slots_per_prompt
  ).items():
    if value < 1:
      raise ValueError(f"{name} {value} must be at least 1")
  if record_experts and not model.config.num_moe_layers:
    raise ValueError("record_experts is set, but the model has no experts")
  if num_slots % row_shards(mesh):
    raise ValueError(
      f"num_slots {num_slots} do not divide over the "
      f"{row_shards(mesh)} parts of the mesh that split rows; choose "
      "a multiple, or another mesh"
    )
  if num_slots // row_shards(mesh) % slots_per_prompt:
    raise ValueError(
      f"slots_per_prompt {slots_per_prompt} does not divide the "
      f"{num_slots // row_shards(mesh)} slots of a part of the mesh"
    )
  return Engine(
    model=model,
    sampling=Sampling(
      mesh=mesh,
      vocab_size=tokenizer.vocab_size,
      eos_ids=tuple(int(i) for i in tokenizer.eos_ids),
      steps=decode_steps,
      temperature=temperature,
      top_p=top_p,
      top_k=top_k,
      record_experts=record_experts,
    ),
    prefix=tuple(int(i) for i in prefix),
    num_slots=num_slots,
    prompt_tokens=prompt_tokens,
    max_tokens=max_tokens,
    kv_bucket=kv_bucket,
    slots_per_prompt=slots_per_prompt,
  )
