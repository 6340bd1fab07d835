"""Rewards: functions that grade completions.

A reward is a function of an Example and a Completion. It returns a float, None
if it could not grade, or DOES_NOT_APPLY if the example is of a kind that it
does not grade. It is deterministic, accepts any text, and imports no JAX,
because graders run in separate processes.

A spec, the `rewards` section of a config, names rewards and their weights:

    dict(accuracy=1.0, format=dict(weight=2.0, offset=-1.0))

An entry may hold arguments of its reward. `offset` is added to the weighted
value. An entry named "my_module:praise", or with `function="my_module:praise"`,
uses that function of the user's module. If domains need different rewards, the
spec holds a spec for each:

    dict(math=dict(accuracy=1.0), general=dict(helpfulness=1.0))
"""

import inspect
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from r1jax import config
from r1jax.rewards import (
  accuracy,
  format,
  language,
  length,
  quality,
  random,
  readability,
  repetition,
)
from r1jax.rewards.code import compilation, programs, speed
from r1jax.rewards.judges import judge, learned
from r1jax.rewards.pool.pool import Call, GraderPool
from r1jax.rewards.tasks import instructions
from r1jax.text import DOES_NOT_APPLY, Completion, Example

logger = logging.getLogger(__name__)

Pair = tuple[Example, Completion]
Group = tuple[Example, list[Completion]]


class Reward(NamedTuple):
  """A reward function, and how it is computed."""

  # (Example, Completion, **arguments) -> float | None | DOES_NOT_APPLY.
  function: Callable
  # If True, the second argument of `function` is the list of all completions of
  # the example's prompt, and the result is the list of their values.
  of_group: bool = False
  # If True, a process of the grader pool computes the reward, because it passes
  # the policy's text to a library that may hang or crash.
  pooled: bool = False
  # Like `function`, but returns (value, feedback): one line on what is wrong.
  explain: Callable | None = None
  # (list of pairs or groups, **arguments) -> function that waits for the
  # values. It starts to grade all of them at once, for rewards that call
  # another machine or run a model. With an empty list it raises ValueError for
  # wrong arguments.
  start: Callable | None = None
  # (examples, **arguments): raises ValueError if the reward cannot grade these
  # examples on this machine.
  check: Callable | None = None
  # If True, `function` raises ValueError for wrong arguments on any input.
  probe: bool = False


REWARDS: dict[str, Reward] = {
  "accuracy": Reward(
    accuracy.reward, pooled=True, explain=accuracy.judge, check=accuracy.check
  ),
  "answered": Reward(accuracy.answered),
  "code": Reward(
    programs.reward,
    pooled=True,
    explain=programs.judge,
    check=lambda _, **arguments: programs.check(**arguments),
  ),
  "compiles": Reward(
    compilation.reward,
    pooled=True,
    explain=compilation.judge,
    check=lambda _, **arguments: compilation.check(**arguments),
  ),
  "cosine": Reward(
    length.cosine,
    pooled=True,
    check=lambda examples, **_: accuracy.check(examples),
    probe=True,
  ),
  "format": Reward(format.reward),
  "helpfulness": Reward(learned.helpfulness, start=learned.start_helpfulness),
  "instructions": Reward(instructions.reward, pooled=True),
  "judge": Reward(judge.reward, start=judge.start),
  "language": Reward(language.reward, pooled=True),
  "length": Reward(
    length.group,
    of_group=True,
    pooled=True,
    check=lambda examples: accuracy.check(examples),
  ),
  "overlong": Reward(length.overlong, probe=True),
  "paragraphs": Reward(readability.paragraphs, probe=True),
  "preference": Reward(
    judge.group_reward, of_group=True, start=judge.start_groups
  ),
  "prose": Reward(readability.prose),
  "quality": Reward(quality.reward, pooled=True, check=quality.check),
  "random": Reward(random.reward, probe=True),
  "repetition": Reward(repetition.reward, probe=True),
  "safety": Reward(learned.safety, start=learned.start_safety),
  "speed": Reward(speed.group, of_group=True, pooled=True, check=speed.check),
  "tags": Reward(format.tags),
  "thought": Reward(format.thought),
}


class Scores(NamedTuple):
  """The rewards of B completions; NaN where one could not be graded."""

  total: np.ndarray  # float64 [B]: the weighted sum of the parts that apply.
  parts: dict[str, np.ndarray]  # Each reward's value, float64 [B].
  counts: dict[str, int]  # "timeouts" and "crashes": values lost to each.
  feedback: Sequence[str] = ()  # [B]: such as failed tests; mostly "".
  # Where each reward applies, bool [B]. Elsewhere its value is NaN. A reward
  # that is missing here applies to all completions.
  applies: Mapping[str, np.ndarray] = {}


class Term(NamedTuple):
  """One reward of a spec."""

  name: str
  reward: Reward
  weight: float
  offset: float
  arguments: dict[str, Any]
  domain: str = ""  # "" for all domains.


def score(
  examples: Sequence[Example],
  completions: Sequence[Completion | str],
  *,
  pool: GraderPool | None = None,
  group_size: int | None = None,
  **spec: Any,
) -> Scores:
  """Returns the rewards of each completion, and their weighted sum.

  Examples:
    >>> example = Example("3 + 4 =", "7", "math/sums")
    >>> right = "<think> 3 + 4 = 7 </think> <answer> 7 </answer>"
    >>> scores = score([example] * 2, [right, "7"], accuracy=1.0, format=0.5)
    >>> scores.total.tolist(), scores.parts["format"].tolist()
    ([1.5, 0.0], [1.0, 0.0])

  Args:
    examples: one for each completion.
    completions: a plain string is a completion's text.
    pool: computes rewards that may hang or crash. None computes them in this
      process, without limits on time or memory.
    group_size: the number of consecutive completions that share a prompt. Only
      rewards of groups use it. None takes consecutive equal examples for a
      group, so that a prompt drawn twice in a row makes one group.
    **spec: the rewards; see the module. A reward of weight 0 is computed and
      reported, but not added to the sum.

  Raises ValueError for a spec that `check` refuses, and for an example whose
  domain has no rewards.
  """
  return submit(
    examples, completions, pool=pool, group_size=group_size, **spec
  )()


def submit(
  examples: Sequence[Example],
  completions: Sequence[Completion | str],
  *,
  pool: GraderPool | None = None,
  group_size: int | None = None,
  **spec: Any,
) -> Callable[[], Scores]:
  """Starts `score` in the background; call the result once for the scores."""
  pairs = [
    (example, Completion(each) if isinstance(each, str) else each)
    for example, each in zip(examples, completions, strict=True)
  ]
  terms = check(examples, **spec)
  domains = [domain_of(example, terms) for example in examples]
  started = []
  for term in terms:
    rows = [i for i, domain in enumerate(domains) if domain == term.domain]
    wait = _start(term, [pairs[i] for i in rows], group_size, pool)
    started.append((term, rows, wait))

  def finish() -> Scores:
    counts, feedback = Counter(timeouts=0, crashes=0), [""] * len(pairs)
    unknown = lambda: np.full(len(pairs), np.nan)
    parts = {term.name: unknown() for term in terms}
    applies = {name: np.zeros(len(pairs), bool) for name in parts}
    total = np.zeros(len(pairs))
    for term, rows, wait in started:
      values, why = wait(counts)
      applies[term.name][rows] = [value != DOES_NOT_APPLY for value in values]
      graded = [np.nan if v in (None, DOES_NOT_APPLY) else v for v in values]
      parts[term.name][rows] = graded
      for i, text in zip(rows, why):
        feedback[i] = feedback[i] or text
      if term.weight or term.offset:
        value = term.weight * parts[term.name][rows] + term.offset
        total[rows] += np.where(applies[term.name][rows], value, 0.0)
    return Scores(total, parts, dict(counts), feedback, applies)

  return finish


def _start(
  term: Term, pairs: Sequence[Pair], group_size: int | None, pool
) -> Callable[[Counter], tuple[list, list[str]]]:
  """Starts one reward; the result waits for its values and its feedback."""
  reward, arguments = term.reward, term.arguments
  items = _groups(pairs, group_size) if reward.of_group else pairs
  if reward.start:
    waiting = reward.start(items, **arguments)
    compute = lambda counts: waiting()
  else:
    function = reward.explain or reward.function
    calls = [Call(function, item, arguments) for item in items]
    if pool and reward.pooled:
      grading = pool.submit(calls)

      def compute(counts):
        values = grading.values()
        counts.update(grading.counts)
        return values
    else:
      compute = lambda counts: [_call(term, call, counts) for call in calls]

  def wait(counts: Counter) -> tuple[list, list[str]]:
    values = compute(counts)
    feedback = [""] * len(values)
    if reward.explain:
      verdicts = [verdict or (None, "") for verdict in values]
      values = [value for value, _ in verdicts]
      feedback = [text for _, text in verdicts]
    if reward.of_group:  # All values of a failed group are None.
      pieces = zip(values, items, strict=True)
      values = [v for vs, (_, cs) in pieces for v in vs or [None] * len(cs)]
      feedback = [""] * len(values)
    return values, feedback

  return wait


def _call(term: Term, call: Call, counts: Counter) -> Any:
  """Returns a value computed in this process; exceptions count as crashes."""
  try:
    return call.function(*call.args, **call.kwargs)
  except Exception as error:
    if not counts["crashes"]:
      example = call.args[0]
      logger.warning("reward %s raised %r on %r", term.name, error, example.id)
    counts["crashes"] += 1
    return None


def check(examples: Sequence[Example] = (), /, **spec: Any) -> list[Term]:
  """Returns the rewards of a spec as a list, after checking each of them.

  Raises ValueError for a reward that does not exist, an argument that a reward
  does not take, a weight that is not a finite number, and a reward that cannot
  grade the examples on this machine.
  """
  terms = _terms(examples, spec)
  for example in examples:
    domain_of(example, terms)
  return terms


def _terms(examples: Sequence[Example], spec: Mapping[str, Any]) -> list[Term]:
  """Does what `check` does, without checking the domains of the examples."""
  if domains := [name for name, entry in spec.items() if _is_spec(name, entry)]:
    if len(domains) < len(spec):
      single = next(name for name in spec if name not in domains)
      raise ValueError(
        f"rewards: {single!r} stands beside {domains[0]!r}, which holds the "
        "rewards of a domain; give every domain its own"
      )
    return [
      term._replace(domain=domain)
      for domain, entry in spec.items()
      for term in _terms(examples, entry)
    ]
  return [_term(name, entry, examples) for name, entry in spec.items()]


def domain_of(example: Example, terms: Sequence[Term]) -> str:
  """Returns the domain of the spec whose rewards grade an example.

  It is "" if the spec has no domains. Otherwise it is the longest prefix of the
  example's domain. Raises ValueError if no domain of the spec matches.
  """
  known = {term.domain for term in terms}
  matching = [
    domain
    for domain in known
    if not domain or f"{example.domain}/".startswith(f"{domain}/")
  ]
  if not matching and known:
    raise ValueError(
      f"rewards: example {example.id!r} has the domain {example.domain!r}; "
      f"there are rewards for {sorted(known)}"
    )
  return max(matching, key=len, default="")


def _is_spec(name: str, entry: Any) -> bool:
  """Whether an entry of a spec holds the rewards of a domain."""
  is_reward = name in REWARDS or ":" in name
  return isinstance(entry, Mapping) and not (
    is_reward or {"weight", "function"} & entry.keys()
  )


def _term(name: str, entry: Any, examples: Sequence[Example]) -> Term:
  """Returns one entry of a spec, after checking it."""
  arguments = dict(entry) if isinstance(entry, Mapping) else {"weight": entry}
  numbers = {key: arguments.pop(key, None) for key in ("weight", "offset")}
  numbers["offset"] = numbers["offset"] or 0.0
  function = arguments.pop("function", name if ":" in name else None)
  if function is not None:
    reward = custom_reward(function)
  elif name in REWARDS:
    reward = REWARDS[name]
  else:
    raise ValueError(f"rewards: {config.unknown('reward', name, REWARDS)}")
  for key, value in numbers.items():
    if not isinstance(value, (int, float)) or not np.isfinite(value):
      raise ValueError(
        f"rewards.{name}: {key} must be a finite number, got {value!r}"
      )
  try:
    inspect.signature(reward.function).bind(None, None, **arguments)
    if reward.start:
      reward.start([], **arguments)
    if reward.check:
      reward.check(examples, **arguments)
    if reward.probe:
      reward.function(Example("", ""), Completion("", 1, 1), **arguments)
  except (TypeError, ValueError) as error:
    raise ValueError(f"rewards.{name}: {error}") from None
  weight, offset = float(numbers["weight"]), float(numbers["offset"])
  return Term(name.rpartition(":")[2], reward, weight, offset, arguments)


def custom_reward(path: str) -> Reward:
  """Returns the reward "module:function" of a user's module.

  It grades groups if its second parameter is called `completions`.

  Raises ValueError if there is no such function.
  """
  try:
    function = config.resolve(path)
  except ValueError as error:
    raise ValueError(f"rewards: {error}") from None
  second = [*inspect.signature(function).parameters][1:2]
  return Reward(function, of_group=second == ["completions"], pooled=True)


def _groups(pairs: Sequence[Pair], group_size: int | None) -> list[Group]:
  """Returns the example of each prompt with the prompt's completions."""
  if group_size is None:
    runs = [[*run] for _, run in groupby(pairs, key=lambda pair: pair[0])]
  elif group_size < 1 or len(pairs) % group_size:
    raise ValueError(
      f"group_size is {group_size}: {len(pairs)} completions cannot be divided "
      "into groups of this size"
    )
  else:
    starts = range(0, len(pairs), group_size)
    runs = [pairs[start : start + group_size] for start in starts]
  for run in runs:
    if any(example != run[0][0] for example, _ in run):
      raise ValueError(
        f"group_size is {group_size}, but a group has completions of example "
        f"{run[0][0].id!r} and of another example"
      )
  return [(run[0][0], [completion for _, completion in run]) for run in runs]
