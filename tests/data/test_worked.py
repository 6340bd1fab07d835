"""The base's corpus: what it says of itself, and what it must not hold."""

import random
import re

import numpy as np
import pytest

from r1jax.data import reasoning_gym, worked
from r1jax.data.split import in_test
from r1jax.data.templates import TEMPLATES
from r1jax.rewards import format
from r1jax.types import Completion, Example

SHARES = dict(
  template_share=0.15,
  template_styles=dict(guess=0.5, short=0.3, long=0.2),
  other_styles=dict(guess=0.1, short=0.4, long=0.5),
  wrong_guess=0.8,
  mistake=0.08,
  missed_check=0.25,
  malformed=0.08,
  chinese_share=0.04,
)
COUNT = 6000
BEFORE = TEMPLATES["r1_zero"].fill("\0").partition("\0")[0]
STYLES = ("guess", "short", "long")


def load(size=COUNT, seed=0, **shares):
  return worked.load(size=size, seed=seed, **SHARES | shares)


@pytest.fixture(scope="module")
def documents():
  return [example.answer for example in load()]


# How reasoning-gym words each kind, and how the corpus does in brief.
PATTERNS = [
  ("countdown", r"(?P<numbers>[\d, ]+) to (?P<target>\d+)\?"),
  (
    "countdown",
    r"Using all the numbers (?P<numbers>[\d, ]+), create an expression that "
    r"equals (?P<target>\d+)\.",
  ),
  (
    "countdown",
    r"(?:Find a way to make|Calculate) (?P<target>\d+) using all of these "
    r"numbers: (?P<numbers>[\d, ]+)\.",
  ),
  ("chain_sum", r"(?:State [^:]*: )?(?P<expression>[-+ \d]+?) =(?: \?)?"),
  ("spell_backward", r"Spell this word [^:]*: (?P<word>[A-Za-z]+)"),
  ("spell_backward", r"(?P<word>[A-Za-z]+) backward\?"),
]


def parse(document):
  """(domain, content, metadata, what follows the question) of a document."""
  text = document.removeprefix(BEFORE).removeprefix("计算")
  matches = ((task, re.match(pattern, text)) for task, pattern in PATTERNS)
  task, match = next((found for found in matches if found[1]), ("", None))
  assert match, document
  metadata = match.groupdict()
  if task == "countdown":
    numbers = [int(n) for n in metadata["numbers"].split(", ")]
    metadata = dict(numbers=numbers, target=int(metadata["target"]))
  domain = f"reasoning_gym/{task}"
  example = Example("", "", domain, metadata=metadata)
  return domain, reasoning_gym.content(example), metadata, text[match.end() :]


def right(metadata, answer):
  """Whether an answer solves its problem, by plain arithmetic."""
  if "word" in metadata:
    return answer == metadata["word"][::-1]
  if not re.fullmatch(r"[-+\d]+", answer):
    return False
  terms = [int(x) for x in re.findall(r"[-+]?\d+", answer)]
  if "expression" in metadata:
    signed = re.findall(r"[-+]?\d+", metadata["expression"].replace(" ", ""))
    return terms == [sum(map(int, signed))]
  used = sorted(map(abs, terms)) == sorted(metadata["numbers"])
  return used and sum(terms) == metadata["target"]


def test_documents_are_functions_of_seed_and_index(documents):
  again = load(size=10**9)
  for index in (5, 3, COUNT - 1, 3):
    assert again[index].answer == documents[index]
    assert again[index].id == str(index)
  other = load(seed=1)
  assert sum(other[i].answer == documents[i] for i in range(200)) < 5
  assert len({*documents}) > 0.9 * COUNT
  assert len(again) == 10**9
  for index in (-1, 10**9):
    with pytest.raises(IndexError):
      again[index]


def test_no_problem_for_testing_is_in_the_corpus(documents):
  kinds = {}
  for document in documents:
    domain, content, _, _ = parse(document)
    assert not in_test(domain, content), document
    kinds.setdefault(domain, set()).add(content)
  assert {domain: len(found) > 500 for domain, found in kinds.items()} == {
    "reasoning_gym/chain_sum": True,
    "reasoning_gym/spell_backward": True,
    "reasoning_gym/countdown": True,
  }


def test_the_test_problems_of_the_library_are_not_in_it(documents):
  """The same, with no part of the split: by the problems themselves."""
  tests = reasoning_gym.load(
    tasks={
      "chain_sum": dict(min_terms=2, max_terms=4, min_digits=1, max_digits=1),
      "spell_backward": dict(min_word_len=3, max_word_len=7),
    },
    split="test",
    size=400,
    seed=0,
  )
  tested = {(e.domain, reasoning_gym.content(e)) for e in tests}
  assert not tested & {parse(document)[:2] for document in documents}


def test_without_the_filter_test_problems_would_appear(monkeypatch):
  monkeypatch.setattr(worked, "in_test", lambda *_: False)
  found = [in_test(*parse(e.answer)[:2]) for e in load(size=500)]
  assert 0.05 < np.mean(found) < 0.15


def close(share, expected, count):
  """Within four standard errors."""
  return abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / count)


def test_shares_of_documents_match_the_arguments(documents):
  chinese = [d.startswith("计算") for d in documents]
  assert close(np.mean(chinese), 0.04, COUNT)
  templated = [d for d in documents if d.startswith(BEFORE)]
  assert len(templated) <= 0.15 * COUNT
  assert close(len(templated) / COUNT, 0.96 * 0.15, COUNT)
  written = [d.split(". Assistant:")[-1] for d in templated]
  formed = [
    w for w in written if format.reward(Example("", ""), Completion(w)) == 1
  ]
  assert close(1 - len(formed) / len(written), 0.08, len(written))
  thoughts = [w.split("<think>")[1].split("</think>")[0] for w in formed]
  styles = [worked.style(thought) for thought in thoughts]
  for style, share in SHARES["template_styles"].items():
    assert close(styles.count(style) / len(styles), share, len(styles)), style


def test_only_the_template_has_tags(documents):
  for document in documents:
    if not document.startswith(BEFORE):
      assert not re.search(r"</?(think|answer)>", document)


def answers(documents):
  """(domain, style, is it right) of every document without the template."""
  for document in documents:
    domain, _, metadata, rest = parse(document)
    if match := re.fullmatch(r"(.*)Answer: (\S*)", rest, re.DOTALL):
      if not document.startswith(BEFORE):
        thought = match[1].rpartition("formatting.\n")[2]
        yield domain, worked.style(thought), right(metadata, match[2])


def test_all_styles_have_errors_and_longer_ones_fewer(documents):
  found = [*answers(documents)]
  assert len(found) > 0.7 * COUNT
  for domain in {domain for domain, _, _ in found}:
    accuracy = [
      np.mean([r for d, s, r in found if (d, s) == (domain, style)])
      for style in STYLES
    ]
    assert 0.02 < accuracy[0] < 0.5, domain
    assert accuracy[1] < 0.95 and accuracy[2] < 1, domain
    assert accuracy[2] > accuracy[1], domain


KINDS = {
  "sum": lambda rng: worked.draw_sum(rng, terms=rng.choice((2, 3, 4))),
  "word": lambda rng: worked.draw_word(
    rng, ["apple", "stone", "check", "wait"]
  ),
  "countdown": lambda rng: worked.draw_countdown(rng, ["{numbers} {target}"]),
}


def metadata_of(problem):
  return parse(problem.brief + "\n")[2]


@pytest.mark.parametrize("kind", KINDS)
def test_without_faults_all_exhaustive_styles_are_correct(kind):
  rng = random.Random(0)
  for _ in range(100):
    problem = KINDS[kind](rng)
    for style in STYLES:
      faults = worked.Faults(0, 0, 0)
      _, answer = worked.working(problem, style, rng, faults)
      if (kind, style) != ("countdown", "short"):  # It tries two of seven.
        assert right(metadata_of(problem), answer)


@pytest.mark.parametrize("kind", ["sum", "word"])
def test_checks_correct_all_mistakes_unless_missed_check_is_set(kind):
  rng, right_share = random.Random(0), {}
  for missed in (0.0, 1.0):
    found = []
    for _ in range(60):
      problem = KINDS[kind](rng)
      thought, answer = worked.working(
        problem, "long", rng, worked.Faults(0, 1, missed)
      )
      found.append(right(metadata_of(problem), answer))
      assert ("wait" in thought) <= (missed == 0)
    right_share[missed] = np.mean(found)
  assert right_share[0.0] == 1.0
  assert right_share[1.0] < 0.6


@pytest.mark.parametrize("kind", KINDS)
def test_styles_are_recognised_and_differ_in_length(kind):
  rng, lengths = random.Random(0), {}
  for style in STYLES:
    works = [
      worked.working(
        KINDS[kind](rng), style, rng, worked.Faults(0.8, 0.08, 0.2)
      )
      for _ in range(200)
    ]
    lengths[style] = np.mean([len(thought) for thought, _ in works])
    told = [worked.style(thought) == style for thought, _ in works]
    # A long search that finds nothing has nothing to check.
    least = 0.8 if (kind, style) == ("countdown", "long") else 1.0
    assert np.mean(told) >= least, style
  assert lengths["guess"] < lengths["short"] < lengths["long"]


def test_a_share_outside_of_0_to_1_is_refused():
  with pytest.raises(ValueError, match="template_share must be .*1.5"):
    load(template_share=1.5)
