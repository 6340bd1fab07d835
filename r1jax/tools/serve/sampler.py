"""The thread that owns the engine: requests join and leave while it samples.

The server's event loop submits and cancels jobs; the thread sends back what
each step has added to them. All that both know goes through two queues: the
inbox of the thread, and callbacks of the loop.
"""

import asyncio
import itertools
import queue
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from r1jax.rollouts.engine import Engine
from r1jax.rollouts.prompt_scores import PromptScores
from r1jax.rollouts.requests import Output, Request
from r1jax.rollouts.sampling import group_keys
from r1jax.rollouts.state import EngineState
from r1jax.tools.serve.choice import Token
from r1jax.tools.serve.errors import ApiError
from r1jax.tools.serve.task import Task
from r1jax.types import Params

BUSY = "the server is busy: its queue is full; try again later"


class Part(NamedTuple):
  """What a step has added to a choice."""

  choice: int  # p * n + g: choice g of prompt p.
  tokens: Sequence[Token]
  finish: int  # 0 while it goes on; see `r1jax.types`.


class Scores(NamedTuple):
  """The log-probabilities of a prompt; they come before its choices' parts."""

  prompt: int
  scores: PromptScores


class Job:
  """A task that the engine works on."""

  def __init__(self, serial: int, task: Task):
    """Nothing is sampled yet."""
    self.serial, self.task = serial, task
    self.going_on = set(range(task.choices))
    self.events: asyncio.Queue[Part | Scores | ApiError] = asyncio.Queue()

  def requests(self) -> Iterator[Request]:
    """One for each choice.

    Choices of the same seed are those of `Engine.__call__` in round 0.
    """
    task, asked = self.task, self.task.parameters
    keys = group_keys(asked.seed, 0, (len(task.prompts), asked.n))
    for serial, p, g in self.ids:
      yield Request(
        id=(serial, p, g),
        prompt=task.prompts[p],
        max_tokens=task.max_tokens[p],
        key=keys[p, g],
        group=(serial, p),
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        stop_ids=task.stop_ids,
        stop_strings=asked.stop_strings,
        prompt_logprobs=asked.echo and asked.logprobs,
        top_logprobs=asked.top_logprobs,
      )

  @property
  def ids(self) -> list[tuple[int, int, int]]:
    """Those of its requests."""
    n = self.task.parameters.n
    pairs = (divmod(choice, n) for choice in range(self.task.choices))
    return [(self.serial, p, g) for p, g in pairs]


class Sampler:
  """Samples what jobs ask for; use it from one event loop."""

  def __init__(self, engine: Engine, params: Params, capacity: int):
    """Nothing runs yet.

    Args:
      engine: has no prefix: prompts may begin with any token.
      params: as `Engine.prepare` has made them.
      capacity: choices that may wait or be under way at once.
    """
    self._engine, self._params, self._capacity = engine, params, capacity
    self._serials = itertools.count()
    self._inbox: queue.SimpleQueue[tuple[str, Job | None]] = queue.SimpleQueue()
    self._jobs: dict[int, Job] = {}
    self._thread: threading.Thread | None = None
    self.pending = 0  # Choices that wait or are under way.
    self.busy = 0  # Slots that the last step has worked on.

  def warm_up(self) -> None:
    """Compiles what most requests need; errors of the model show here."""
    state = self._engine.start(self._params)
    state = self._engine.add(state, [Request("first", [0], 1)])
    while not state.done:
      state, _ = self._engine.step(state)

  def start(self) -> None:
    """Starts the thread; call it in the event loop."""
    self._loop = asyncio.get_running_loop()
    self._thread = threading.Thread(
      target=self._run, name="r1jax-sampler", daemon=True
    )
    self._thread.start()

  async def stop(self) -> None:
    """Ends the thread after its step, whatever is under way."""
    self._inbox.put(("stop", None))
    await asyncio.to_thread(self._thread.join)

  def submit(self, task: Task) -> Job:
    """The task as a job; raises ApiError if there is no room for it."""
    if self.pending + task.choices > self._capacity:
      raise ApiError(BUSY, status=429, code="queue_full")
    job = Job(next(self._serials), task)
    self._jobs[job.serial] = job
    self.pending += task.choices
    self._inbox.put(("add", job))
    return job

  def cancel(self, job: Job) -> bool:
    """Forgets a job, and frees its slots; whether it was under way."""
    if self._jobs.pop(job.serial, None) is None:
      return False
    self.pending -= len(job.going_on)
    self._inbox.put(("remove", job))
    return True

  def _deliver(
    self, events: Sequence[tuple[int, Part | Scores | ApiError]], busy: int
  ) -> None:
    """Hands events to their jobs, of which some may have been cancelled."""
    self.busy = busy
    for serial, event in events:
      job = self._jobs.get(serial)
      if job is None:
        continue
      job.events.put_nowait(event)
      if isinstance(event, ApiError):
        self.cancel(job)
      elif isinstance(event, Part) and event.finish:
        job.going_on.remove(event.choice)
        self.pending -= 1
        if not job.going_on:
          self.cancel(job)

  # What follows runs in the thread.

  def _run(self) -> None:
    state, jobs = None, {}  # The jobs that the engine knows.
    while True:
      try:
        state = state or self._engine.start(self._params)
        state = self._take_in(state, jobs)
        if state is None:
          return
        if not state.done:
          state, output = self._engine.step(state)
          self._send(self._events(output, jobs), len(state.busy))
      except Exception:
        # Such as too little memory. Others may come who ask for less.
        traceback.print_exc(file=sys.stderr)
        error = ApiError("the model failed to answer", status=500)
        self._send([(serial, error) for serial in jobs], 0)
        state, jobs = None, {}

  def _take_in(
    self, state: EngineState, jobs: dict[int, Job]
  ) -> EngineState | None:
    """The state with what the inbox asks for; None once it is to stop.

    It waits for the next request if there is nothing to do.
    """
    while True:
      try:
        action, job = self._inbox.get(block=state.done)
      except queue.Empty:
        return state
      if action == "stop":
        return None
      if action == "remove":
        jobs.pop(job.serial, None)
        state = self._engine.remove(state, job.ids)
        self._send([], len(state.busy))
        continue
      jobs[job.serial] = job
      try:
        state = self._engine.add(state, [*job.requests()])
      except ValueError as error:
        self._send([(job.serial, ApiError(str(error)))], len(state.busy))

  def _events(
    self, output: Output, jobs: dict[int, Job]
  ) -> list[tuple[int, Part | Scores | ApiError]]:
    """What a step has done, by the serial numbers of jobs."""
    events: list = [
      (serial, Scores(prompt, scores))
      for (serial, prompt), scores in output.prompts.items()
    ]
    counts, finish = (output.count - output.start).tolist(), output.finish
    for row, (serial, p, g) in enumerate(output.ids):
      asked, count = jobs[serial].task.parameters, counts[row]
      top = asked.top_logprobs
      best = zip(
        output.top_ids[row, :count, :top].tolist(),
        output.top_logprobs[row, :count, :top].tolist(),
      )
      tokens = [
        Token(number, value, [*zip(ids, values)])
        for number, value, (ids, values) in zip(
          output.tokens[row, :count].tolist(),
          output.logprobs[row, :count].tolist(),
          best,
        )
      ]
      events.append((serial, Part(p * asked.n + g, tokens, int(finish[row]))))
    return events

  def _send(
    self, events: Sequence[tuple[int, Part | Scores | ApiError]], busy: int
  ) -> None:
    self._loop.call_soon_threadsafe(self._deliver, events, busy)
