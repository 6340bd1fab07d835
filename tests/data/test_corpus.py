"""Problems in two languages, and the documents of the base that reads both."""

import random
import re

import numpy as np
import pytest

from r1jax import data
from r1jax.data import bilingual, corpus, general, reasoning_gym, worked
from r1jax.data.split import in_test
from r1jax.data.templates import TEMPLATES
from r1jax.rewards import accuracy, format, language
from r1jax.types import Completion, Example

COUNT = 2500
SHARES = dict(
  chinese=0.5,
  mixing=0.3,
  template_share=0.15,
  template_styles=dict(guess=0.5, short=0.3, long=0.2),
  other_styles=dict(guess=0.1, short=0.4, long=0.5),
  wrong_guess=0.8,
  mistake=0.08,
  missed_check=0.25,
  malformed=0.08,
  general_share=0.2,
  fault=0.2,
)
TASKS = dict(
  chain_sum=dict(min_terms=2, max_terms=6, min_digits=1, max_digits=1),
  spell_backward=dict(min_word_len=3, max_word_len=7),
  countdown=dict(
    min_numbers=3,
    max_numbers=3,
    min_value=1,
    max_value=16,
    min_target=1,
    max_target=48,
    operators=("+", "-"),
  ),
)
BEFORE = TEMPLATES["r1_zero"].fill("\0").partition("\0")[0]
HAN = re.compile("[\u4e00-\u9fff]")


def load(size=COUNT, seed=0, **shares):
  return data.load("corpus", size=size, seed=seed, **SHARES | shares)


def problems(split="train", size=300, seed=0, **options):
  return data.load(
    "bilingual", tasks=TASKS, split=split, size=size, seed=seed, **options
  )


@pytest.fixture(scope="module")
def documents():
  return [example.answer for example in load()]


def content(text):
  """The kind and content of a document's problem, by its numbers or word.

  Sums and Countdown are told apart by their signs; None for a request.
  """
  text = text.removeprefix(BEFORE).split(". Assistant:")[0]
  if match := re.search(
    r"(?:problem: |结果：|计算 |^)(-?\d+(?: [-+] \d+)+) =", text
  ):
    return "chain_sum", {"expression": match[1]}
  if match := re.search(
    r"(?:nus[)）][:：] ?|倒写 |^)([A-Za-z]+)(?: backward|？|$|\n)", text
  ):
    return "spell_backward", {"word": match[1]}
  listed = re.search(r"\d+, \d+, \d+", text)
  if not listed:
    return None
  rest = text.replace(listed[0], "", 1)
  target = re.search(r"\d+", rest)
  return "countdown", {
    "numbers": [int(n) for n in listed[0].split(", ")],
    "target": int(target[0]),
  }


def is_general(document):
  text = document.removeprefix(BEFORE)
  return bool(re.search(r"\bI am [A-Z]|我是", text.split("\n")[0]))


def close(share, expected, count):
  """Within four standard errors."""
  return abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / count)


def test_problems_take_turns_in_language_and_are_graded_alike():
  dataset = problems(size=60)
  for i, example in enumerate(dataset):
    chinese = i // 3 % 2 == 1
    assert example.metadata["language"] == ("zh" if chinese else "en")
    assert bool(HAN.search(example.prompt)) == chinese
    text = f"<think></think> <answer> {example.answer} </answer>"
    assert accuracy.reward(example, Completion(text)) == 1.0
    assert accuracy.reward(example, Completion(text.replace("r> ", "r> 1"))) < 1
  assert len({example.id for example in dataset}) == 60


def test_a_chinese_wording_states_the_whole_problem():
  numbers = lambda text: sorted(re.findall(r"\d+", text))
  dataset = problems(size=150)
  english = reasoning_gym.load(tasks=TASKS, split="train", size=150, seed=0)
  for one, other in zip(dataset, english):
    assert one.answer == other.answer
    if one.metadata["language"] == "en":
      assert one.prompt == other.prompt
    elif one.domain.endswith("spell_backward"):
      assert one.prompt.endswith(one.metadata["word"])
    elif one.domain.endswith("chain_sum"):
      assert one.metadata["expression"] in one.prompt
    else:
      given = [*one.metadata["numbers"], one.metadata["target"]]
      assert numbers(one.prompt) == sorted(map(str, given))


def test_no_problem_is_in_both_splits_in_whatever_language():
  found = {}
  for split in ("train", "test"):
    found[split] = {
      (example.domain, reasoning_gym.content(example))
      for languages in (("en",), ("zh",))
      for example in problems(split, 240, languages=languages)
    }
  assert not found["train"] & found["test"]


def test_tasks_and_languages_without_wordings_are_refused():
  with pytest.raises(ValueError, match="'fr'"):
    problems(languages=("fr",))
  with pytest.raises(ValueError, match="'gcd'"):
    bilingual.load(tasks={"gcd": {}}, split="train", size=1, seed=0)


def test_documents_are_functions_of_seed_and_index(documents):
  again, other = load(size=10**9), load(seed=1)
  for index in (5, 3, COUNT - 1):
    assert again[index].answer == documents[index]
  assert sum(other[i].answer == documents[i] for i in range(200)) < 5
  for index in (-1, 10**9):
    with pytest.raises(IndexError):
      again[index]


def test_no_problem_or_request_for_testing_is_in_the_corpus(documents):
  found = {}
  tested = {
    e.prompt for e in data.load("general", split="test", size=1200, seed=0)
  }
  for document in documents:
    if is_general(document):
      text = document.removeprefix(BEFORE)
      request = re.split(r"\n|\. Assistant:", text)[0]
      assert request not in tested
      assert request + "." not in tested
      continue
    kind, metadata = content(document)
    domain = f"reasoning_gym/{kind}"
    example = Example("", "", domain, metadata=metadata)
    normal = reasoning_gym.content(example)
    assert not in_test(domain, normal), document
    found.setdefault(kind, set()).add(normal)
  assert {kind: len(seen) > 300 for kind, seen in found.items()} == {
    "chain_sum": True,
    "spell_backward": True,
    "countdown": True,
  }


def test_shares_of_documents_match_the_arguments(documents):
  asked = [is_general(d) for d in documents]
  assert close(np.mean(asked), 0.2, COUNT)
  templated = [d for d in documents if d.startswith(BEFORE)]
  assert close(len(templated) / COUNT, 0.15, COUNT)
  questions = [
    d.removeprefix(BEFORE).split(". Assistant:")[0].split("\n")[0]
    for d in documents
  ]
  chinese = [bool(HAN.search(q)) for q in questions]
  assert close(np.mean(chinese), 0.5, COUNT)
  written = [d.split(". Assistant:")[-1] for d in templated]
  formed = [format.reward(Example("", ""), Completion(w)) for w in written]
  assert close(1 - np.mean(formed), 0.08, len(written))
  for document in documents:
    if not document.startswith(BEFORE):
      assert not re.search(r"</?(think|answer)>", document)


def thoughts(mixing, count=60):
  """(language, style, thought) of problems of all kinds."""
  source, rng = worked.Problems(), random.Random(0)
  faults = worked.Faults(0.8, 0.08, 0.25)
  for _ in range(count):
    problem = source.draw(rng)
    for code in general.LANGUAGES:
      for style in ("guess", "short", "long"):
        steps, _ = worked.steps(problem, style, rng, faults)
        text = corpus.think(steps, problem, code, mixing, rng)
        yield code, style, text


def consistency(code, thought):
  example = Example("", "", metadata={"language": code})
  return language.reward(example, Completion(f"<think>{thought}</think>"))


def test_without_mixing_thoughts_are_in_one_language():
  """Their formulas and spelled letters belong to none."""
  for code, _, thought in thoughts(mixing=0.0):
    if thought:
      assert consistency(code, thought) == 1.0, thought


def test_with_mixing_one_is_all_the_other_language():
  for code, _, thought in thoughts(mixing=1.0, count=50):
    assert consistency(code, thought) == 0.0, thought


def test_the_mixing_shows_in_the_language_consistency():
  found = {}
  for code, style, thought in thoughts(mixing=0.3, count=150):
    found.setdefault((code, style), []).append(consistency(code, thought))
  for (code, style), values in found.items():
    if style != "guess":
      assert 0.55 < np.mean(values) < 0.8, (code, style)
      assert np.mean(np.array(values) < 1) > 0.4, (code, style)


def test_styles_are_recognised_in_both_languages():
  for code, style, thought in thoughts(mixing=0.3, count=100):
    told = worked.style(thought)
    # A long search that finds nothing has nothing to check.
    unchecked = (style, told) == ("long", "short")
    assert told == style or (unchecked and "=" in thought), (code, thought)


def test_all_words_of_a_chinese_thought_are_translated():
  english = set()
  for code, _, thought in thoughts(mixing=0.0, count=150):
    if code == "zh":
      english |= {*re.findall(r"[a-z]{2,}", re.sub("`[^`]*`", "", thought))}
  assert not english


def test_a_probability_outside_of_0_to_1_is_refused():
  for name in ("mixing", "fault", "chinese", "general_share"):
    with pytest.raises(ValueError, match=f"{name} must be .*1.5"):
      load(**{name: 1.5})
