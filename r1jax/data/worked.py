"""Worked problems in a mixture of styles: what the demo's base model reads.

Three kinds of problem (sums, words spelled backward, Countdown with three
numbers), each worked as a bare guess, a short chain, or a long chain that
checks itself. All styles make honest mistakes: a wrong digit, a swapped letter,
a check that is not carried out. No problem that the reasoning-gym test split
could draw is in it.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from r1jax.data.split import in_test
from r1jax.data.templates import TEMPLATES
from r1jax.types import Example

GUESSES = ("", "I guess.", "It looks like this.")


class Problem(NamedTuple):
  """A question in two wordings, and what `working` needs to solve it."""

  question: str  # As reasoning-gym words it.
  brief: str
  domain: str
  content: str  # Equal for all wordings of one problem.
  parts: tuple


def load(
  *,
  size: int,
  seed: int,
  template_share: float,
  template_styles: Mapping[str, float],
  other_styles: Mapping[str, float],
  wrong_guess: float,
  mistake: float,
  missed_check: float,
  malformed: float,
  chinese_share: float,
) -> Sequence[Example]:
  """`size` documents, each a pure function of (seed, index).

  Args:
    size: number of documents; they are made when they are read.
    seed: of everything random.
    template_share: of the documents that use the R1-Zero template.
    template_styles: shares of "guess", "short" and "long" among those.
    other_styles: the same, among documents without the template.
    wrong_guess: share of the guesses that are altered to be wrong.
    mistake: chance that a step of a chain is wrong (half of it per letter).
    missed_check: chance that a check does not see a mistake.
    malformed: share of template documents with a tag missing or text outside.
    chinese_share: of the documents, sums all of them, in Chinese.
  """
  if not 0 <= template_share <= 1:
    raise ValueError(f"template_share {template_share} is not within 0..1")
  return Documents(
    size,
    seed,
    template_share=template_share,
    template_styles=template_styles,
    other_styles=other_styles,
    malformed=malformed,
    chinese_share=chinese_share,
    faults=Faults(wrong_guess, mistake, missed_check),
  )


class Faults(NamedTuple):
  """How often a worked problem goes wrong."""

  wrong_guess: float
  mistake: float
  missed_check: float


class Documents(Sequence[Example]):
  """Documents by index; nothing is stored."""

  def __init__(self, size, seed, *, faults, **shares):
    from reasoning_gym.factory import create_dataset  # A second to import.

    self._size, self._seed, self._faults = size, seed, faults
    self._shares = shares
    self._words = create_dataset(
      "spell_backward", min_word_len=3, max_word_len=7
    ).words
    countdown = create_dataset("countdown")
    from reasoning_gym.games.countdown import QUESTION_FORMAT_TEMPLATE

    self._countdown = [
      QUESTION_FORMAT_TEMPLATE.format(question=wording)
      for wording in countdown._prompt_templates  # The only place they are.
    ]

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < self._size:
      raise IndexError(f"index {index} of {self._size} documents")
    rng = random.Random(f"{self._seed}/{index}")
    return Example(prompt="", answer=self._write(rng), id=str(index))

  def _write(self, rng: random.Random) -> str:
    shares = self._shares
    if rng.random() < shares["chinese_share"]:
      return chinese_sum(rng, self._faults)
    problem = self._draw(rng)
    templated = rng.random() < shares["template_share"]
    styles = shares["template_styles" if templated else "other_styles"]
    style = rng.choices([*styles], [*styles.values()])[0]
    thought, answer = working(problem, style, rng, self._faults)
    if templated:
      written = tagged(thought, answer, rng, shares["malformed"])
      return TEMPLATES["r1_zero"].fill(problem.question) + written
    wording = problem.brief if rng.random() < 0.9 else problem.question.strip()
    thought = thought + "\n" if thought else ""
    return f"{wording}\n{thought}Answer: {answer}"

  def _draw(self, rng: random.Random) -> Problem:
    """A problem of any kind that is not for testing."""
    kind = rng.choices(("sum", "spell", "countdown"), (0.36, 0.28, 0.36))[0]
    while True:
      if kind == "sum":
        problem = draw_sum(rng, terms=rng.choice((2, 3, 4, 5, 6)))
      elif kind == "spell":
        problem = draw_word(rng, self._words)
      else:
        problem = draw_countdown(rng, self._countdown)
      if not in_test(problem.domain, problem.content):
        return problem


def draw_sum(rng: random.Random, terms: int) -> Problem:
  """A sum of digits, some of them taken away."""
  digits = [rng.randint(0, 9) for _ in range(terms)]
  signs = ["+"] + [rng.choice("+-") for _ in range(terms - 1)]
  pairs = list(zip(signs, digits, strict=True))
  text = " ".join(f"{sign} {digit}" for sign, digit in pairs)[2:]
  return Problem(
    question="State the final answer to the following arithmetic problem: "
    f"{text} =",
    brief=f"{text} = ?",
    domain="reasoning_gym/chain_sum",
    content=" ".join(sorted(f"{sign}{digit}" for sign, digit in pairs)),
    parts=tuple(pairs),
  )


def draw_word(rng: random.Random, words: Sequence[str]) -> Problem:
  """A word to spell backward."""
  word = rng.choice(words)
  return Problem(
    question=f"Spell this word backward (example: sun -> nus): {word}",
    brief=f"{word} backward?",
    domain="reasoning_gym/spell_backward",
    content=word.lower(),
    parts=(word,),
  )


def draw_countdown(rng: random.Random, wordings: Sequence[str]) -> Problem:
  """Three numbers up to 16, and a target that some signs reach."""
  while True:
    numbers = [rng.randint(1, 16) for _ in range(3)]
    target = numbers[0] + sum(rng.choice((1, -1)) * n for n in numbers[1:])
    if 1 <= target <= 48:
      break
  rng.shuffle(numbers)
  listed = ", ".join(map(str, numbers))
  return Problem(
    question=rng.choice(wordings).format(numbers=listed, target=target),
    brief=f"{listed} to {target}?",
    domain="reasoning_gym/countdown",
    content=f"{sorted(numbers)} {target}",
    parts=(numbers, target),
  )


def working(
  problem: Problem, style: str, rng: random.Random, faults: Faults
) -> tuple[str, str]:
  """The thought and the answer, in one of the three styles."""
  work = {
    "reasoning_gym/chain_sum": work_sum,
    "reasoning_gym/spell_backward": work_word,
    "reasoning_gym/countdown": work_countdown,
  }[problem.domain]
  return work(*problem.parts, style=style, rng=rng, faults=faults)


def signed(number: int) -> str:
  """The number as a later term: +5 or -5."""
  return f"{number:+d}"


def slip(value: int, rng: random.Random) -> int:
  """A wrong result, off by a digit."""
  return value + rng.choice((-10, -2, -1, 1, 2, 10))


def work_sum(*pairs: tuple[str, int], style, rng, faults) -> tuple[str, str]:
  """Running totals; the long style undoes each step to check it."""
  if style == "guess":
    total = sum(int(f"{sign}{digit}") for sign, digit in pairs)
    if rng.random() < faults.wrong_guess:
      total += rng.choice((-1, 1)) * rng.randint(1, 9)
    return rng.choice(GUESSES), str(total)
  steps, total = [], pairs[0][1]
  for sign, digit in pairs[1:]:
    undo = {"+": "-", "-": "+"}[sign]
    right = total + int(f"{sign}{digit}")
    found = slip(right, rng) if rng.random() < faults.mistake else right
    step = f"{total}{sign}{digit}={found}"
    if style == "long":
      seen = found == right or rng.random() >= faults.missed_check
      back = found + int(f"{undo}{digit}") if seen else total
      step += f" check {found}{undo}{digit}={back}"
      if seen and found != right:
        step += f" wait {total}{sign}{digit}={right}"
        found = right
      step += " ok"
    steps.append(step)
    total = found
  return ", ".join(steps), str(total)


def work_word(word: str, *, style, rng, faults) -> tuple[str, str]:
  """Numbered letters, then counted down; the long style does so again."""
  letters = list(word)
  if style == "guess":
    guess = letters[::-1]
    if rng.random() < faults.wrong_guess:  # Two letters change places.
      i = rng.randrange(len(guess) - 1)
      guess[i], guess[i + 1] = guess[i + 1], guess[i]
    return rng.choice(GUESSES), "".join(guess)
  places = list(enumerate(letters, 1))
  backward = places[::-1]
  found = [
    (i, rng.choice(letters) if rng.random() < faults.mistake / 2 else letter)
    for i, letter in backward
  ]
  spell = lambda pairs: "".join(f"{i}{letter}" for i, letter in pairs)
  thought = f"{spell(places)} {spell(found)}"
  if style == "long":
    seen = found == backward or rng.random() >= faults.missed_check
    thought += f" check {spell(backward if seen else found)}"
    if seen and found != backward:
      thought += f" wait {spell(backward)}"
      found = backward
    thought += " ok"
  return thought, "".join(letter for _, letter in found)


def sign_patterns(a: int, b: int, c: int) -> list[tuple[int, int, int]]:
  """All ways to add and subtract three numbers, starting with a plus."""
  return [
    (a, b, c),
    (a, b, -c),
    (a, c, -b),
    (b, c, -a),
    (a, -b, -c),
    (b, -a, -c),
    (c, -a, -b),
  ]


def work_countdown(numbers, target, *, style, rng, faults) -> tuple[str, str]:
  """Tries signs in order; the long style goes on until it finds them."""
  patterns = sign_patterns(*numbers)
  write = lambda terms: str(terms[0]) + "".join(map(signed, terms[1:]))
  if style == "guess":
    right = next(p for p in patterns if sum(p) == target)
    wrong = rng.random() < faults.wrong_guess
    return rng.choice(GUESSES), write(rng.choice(patterns) if wrong else right)
  if style == "short":
    start = rng.randrange(len(patterns) - 1)
    patterns = patterns[start : start + 2]
  tries = []
  for terms in patterns:
    right = sum(terms)
    found = slip(right, rng) if rng.random() < faults.mistake else right
    half = terms[0] + terms[1]
    tries.append(f"{write(terms)}={half}{signed(terms[2])}={found}")
    if found != target:
      tries[-1] += " no"
      continue
    tries[-1] += " yes"
    if style == "short":
      break
    seen = found == right or rng.random() >= faults.missed_check
    checked = right if seen else found
    tries[-1] += f" check {half}{signed(terms[2])}={checked}"
    if checked == target:
      tries[-1] += " ok"
      break
    tries[-1] += " wait"
  return ", ".join(tries), write(terms)


def tagged(
  thought: str, answer: str, rng: random.Random, malformed: float
) -> str:
  """Thought and answer in the template's tags, which sometimes go wrong."""
  thought = f" <think> {thought}" if thought else " <think>"
  whole = f"{thought} </think> <answer> {answer} </answer>"
  if rng.random() >= malformed:
    return whole
  damage: tuple[Callable[[str], str], ...] = (
    lambda text: text.replace(" </think>", ""),
    lambda text: text.replace("<answer> ", "").replace(" </answer>", ""),
    lambda text: text.replace(" <think>", ""),
    lambda text: text + f" Answer: {answer}",
  )
  return rng.choice(damage)(whole)


def chinese_sum(rng: random.Random, faults: Faults) -> str:
  """A sum worked in Chinese, in the short style."""
  while True:
    problem = draw_sum(rng, terms=rng.choice((2, 3)))
    if not in_test(problem.domain, problem.content):
      break
  thought, answer = working(problem, "short", rng, faults)
  steps = "，再算".join(thought.split(", "))
  return f"计算{problem.brief}\n先算{steps}。答案是{answer}"


def style(thought: str) -> str:
  """Which style a thought is in: "guess", "short" or "long"."""
  if "check" in thought or "wait" in thought:
    return "long"
  return "short" if any(c.isdigit() for c in thought) else "guess"
