"""Mathematics: what is equal, and the traps of the library that decides."""

import pathlib
import time

import pytest

from r1jax.data import jsonl
from r1jax.rewards import accuracy
from r1jax.rewards.maths import answers, verifier
from r1jax.types import Completion, Example

# Answers as they are written: gold, answer, and whether it is right.
ANSWERS = pathlib.Path(__file__).parent / "answers.jsonl"
SHARED = pathlib.Path(__file__).parents[3] / "../shared/data"
CASES = SHARED.parent / "cases/math.jsonl"
needs_cases = pytest.mark.skipif(
  not CASES.exists(), reason="there is no ../shared/cases"
)
needs_data = pytest.mark.skipif(
  not SHARED.exists(), reason="there is no ../shared/data"
)

RIGHT = [
  ("6", r"\boxed{6}"),
  ("6", "<answer>6</answer>"),
  ("6", r"\fbox{6}"),
  ("6", "<answer> $6$. </answer>"),
  ("6", r"<answer>\boxed{5}, no wait, \boxed{6}</answer>"),
  ("72", r"<answer>\$72</answer>"),
  ("5", r"\boxed{5\text{ cm}}"),
  ("1000", r"\boxed{1,000}"),
  ("14916", r"\boxed{14{,}916}"),
  ("-3", "\\boxed{\N{MINUS SIGN}3}"),
  ("6", r"\boxed{x=6}"),
  ("0.5", r"\boxed{\dfrac12}"),
  (r"\frac{1}{3}", r"\boxed{0.333333}"),
  (r"2\sqrt{3}", r"\boxed{\sqrt{12}}"),
  (r"\left(3,\frac{\pi}{2}\right)", r"\boxed{(3,\pi/2)}"),
  ("x+1", r"\boxed{1+x}"),
  (r"\text{Evelyn}", "<answer>Evelyn</answer>"),
  ("C", r"\boxed{\text{C}}"),
  (r"\{1,2\}", r"\boxed{\{2,1\}}"),
  ("(0,4]", r"\boxed{(0,4]}"),
]
WRONG = [
  ("6", r"\boxed{7}"),
  ("6", r"\boxed{}"),
  ("6", r"\boxed{5,6}"),
  ("6", r"\boxed{6} then \boxed{7"),
  ("6", r"<answer>5} \boxed{6</answer>"),
  (r"2\sqrt{3}", r"\boxed{2}"),
  (r"\left(3,\frac{\pi}{2}\right)", r"\boxed{3}"),
  (r"\frac{1}{3}", r"\boxed{0.33}"),
  (r"1-\frac{1}{e}", r"\boxed{1+\frac1e}"),
  ("(0,4]", r"\boxed{(0,4)}"),
  ("C", r"\boxed{D}"),
  ("6", r"\boxed{9^{9^{9}}}"),
  ("6", r"\boxed{(9^{9999})^{9999}}"),
  ("6", r"\boxed{99999!}"),
  ("6", r"\boxed{" + "(" * 100 + "6" + ")" * 100 + "}"),
  ("6", r"\boxed{" + "6+" * 500 + "0}"),
]


def grade(gold: str, text: str) -> float | None:
  completion = Completion(f"<think>so</think>{text}")
  return accuracy.reward(Example("", gold, "math/test"), completion)


@pytest.mark.parametrize(("gold", "text"), RIGHT)
def test_an_equal_answer_is_right(gold, text):
  assert grade(gold, text) == 1.0


@pytest.mark.parametrize(("gold", "text"), WRONG)
def test_another_answer_is_wrong(gold, text):
  assert grade(gold, text) == 0.0


def test_a_gold_that_cannot_be_parsed_gives_None():
  gold = r"where $b$ is any integer with $\mho(a)=0$ and $"
  assert grade(gold, r"\boxed{3}") is None
  example = Example("", gold, "math/test", "file:3")
  assert accuracy.verify_golds([example]) == [("file:3", gold)]


def test_every_gold_above_verifies_against_itself():
  examples = [Example("", gold, "math/test") for gold, _ in RIGHT]
  assert accuracy.verify_golds(examples) == []


def test_one_megabyte_is_refused_at_once():
  for text in ("{" * 10**6, "9" * 10**6, r"\boxed{" * 10**5, "x^" * 10**6):
    assert grade("6", f"<answer>{text}</answer>") == 0.0


@pytest.mark.parametrize("gold", ["6", "x^2+1"])
@pytest.mark.parametrize(
  "answer",
  [
    r"(10^{9})!",
    r"\left(9!\right)!",
    "10⁹⁹!",
    r"\binom{10^9}{10^8}",
    r"\binom{1000000000}{500000000}",
    r"\Gamma(10^9)",
    r"\exp(\exp(\exp(99)))",
    "(x+1)^{9999}",
    "(x+y+z)^{999}",
    r"(\sqrt2+\sqrt3+\sqrt5+\sqrt7+\sqrt{11}+\sqrt{13})^{50}",
    "|" * 50 + "7" + "|" * 50,
    "a_{" * 14 + "7" + "}" * 14,
  ],
)
def test_answers_that_take_long_to_compute_are_rejected_fast(gold, answer):
  start = time.process_time()
  assert grade(gold, rf"\boxed{{{answer}}}") == 0.0
  assert time.process_time() - start < 4.0  # With all imports.


def test_the_last_balanced_box_is_found():
  assert (
    answers.last_boxed(r"\boxed{1}. \boxed{\frac{1}{2}} .") == r"\frac{1}{2}"
  )
  assert answers.last_boxed(r"\boxed{1} \boxed{2") is None
  assert answers.last_boxed("1") is None
  assert answers.last_boxed(r"\boxed{1} and $\boxed{2}$") == "1, 2"
  assert answers.last_boxed(r"\boxed{1} or \boxed{2}") == "1 or 2"
  assert answers.last_boxed(r"\boxed{1}, no, \boxed{2}") == "2"
  assert answers.last_boxed(r"\boxed{\boxed{1}}") == "1"
  assert answers.last_boxed(r"\boxed 1") == "1"


def verdict(row: dict) -> float | None:
  """A row's answer in a box, or as all that follows the thinking."""
  text = row["answer"] if row.get("text") else rf"\boxed{{{row['answer']}}}"
  example = Example("", row["gold"], row.get("domain", "math"))
  return accuracy.reward(example, Completion(f"<think>so</think>{text}"))


@pytest.mark.slow
def test_answers_are_equal_in_every_way_they_are_written():
  missed = [
    row
    for _, row in jsonl.read(ANSWERS)
    if (
      verdict(row)
      if row.get("text")
      else answers.grade(Example("", row["gold"], "math"), row["answer"])
    )
    != float(row["right"])
  ]
  assert missed == []


@needs_cases
def test_every_known_case_is_graded_as_it_should_be():
  missed = []
  for _, row in jsonl.read(CASES):
    wanted = row["want"] if isinstance(row["want"], list) else [row["want"]]
    if verdict(row) not in wanted:
      missed.append(row)
  assert missed == []


@pytest.mark.parametrize(
  "gold",
  ["9^{9^{9^{9}}}", "8^{8^{8^{8}}}", "(9^{9^9})^{9^9}", "1000000!"]
  + [r"\exp(\exp(\exp(100)))", r"\frac{1}{9^{9^{9^{9}}}}", "x=9^{9^{9^{9}}}"],
)
def test_a_gold_too_large_to_compute_gives_no_verdict_at_once(gold):
  start = time.process_time()
  for answer in ("9^{9}", "7", r"9^{9^{9}}", "x", r"\frac12"):
    assert answers.grade(Example("", gold, "math"), answer) in (0.0, None)
  assert answers.grade(Example("", gold, "math"), gold) == 1.0
  assert answers.verify_gold(Example("", gold, "math"), gold) == 0.0
  assert time.process_time() - start < 4.0  # With all imports.


def test_a_power_tower_that_is_small_is_computed():
  assert grade("3^{3^{3}}", r"\boxed{3^{27}}") == 1.0
  assert grade("3^{3^{3}}", r"\boxed{27^3}") == 0.0


def test_math_verify_compares_formulas_and_refuses_golds_that_it_cannot_read():
  assert verifier.equivalent(r"2\sqrt{3}", r"\sqrt{12}")
  assert not verifier.equivalent(r"2\sqrt{3}", r"\sqrt{13}")
  assert not verifier.equivalent(r"2\sqrt{3}", "9^{9^{9}}")
  with pytest.raises(verifier.UnreadableGold):
    verifier.equivalent(r"\mho(a", "1")


@needs_data
def test_all_1200_verdicts_on_real_completions_agree():
  rows = jsonl.read(SHARED / "eval/completions_gsm8k_dev.jsonl")
  for _, row in rows:
    example = Example(row["problem"], row["gold"], "math/gsm8k")
    thought, _, answer = row["completion"].strip().rpartition("\nA: ")
    for text in (
      f"<think></think>{row['completion']}",
      f"<think>{thought}</think><answer>{answer}</answer>",
      f"<think>{thought}</think>So it is \\boxed{{{answer}}}.",
    ):
      verdict = accuracy.reward(example, Completion(text))
      assert verdict == row["expected"], (row["gold"], answer)


@needs_data
def test_verdicts_on_sampled_solutions_of_math_agree():
  """But for one problem, whose answer the file's grader cut off."""
  for _, row in jsonl.read(SHARED / "train/rm_math_outcomes_qwen.jsonl"):
    example = Example(row["problem"], row["gold"], "math")
    completion = Completion(f"<think></think>{row['completion']}")
    expected = row["expected"] or r"4:30 \text{" in row["completion"]
    assert accuracy.reward(example, completion) == expected


@needs_data
@pytest.mark.parametrize(
  ("name", "bad"),
  [
    ("math_gsm8k_test", []),
    ("math_math500", []),
    ("math_aime2024", []),
    ("math_amc23", []),
    # A bracket that begins with a letter, and a sentence with conditions.
    ("math_olympiadbench_en", ["$t(0,4]$", "$f(x)=a x+b$, where $b$ is an"]),
    ("math_cmath_test_zh", []),
    # Two sentences.
    ("math_gaokao_cloze_zh", ["三组对面分别平行的四棱柱为平行六面体;"]),
    ("math_svamp_300", []),
  ],
)
def test_gold_answers_verify_against_themselves(name, bad):
  examples = [
    Example(row["problem"], str(row["answer"]), "math", row["id"])
    for _, row in jsonl.read(SHARED / f"eval/{name}.jsonl")
  ]
  wrong = [answer for _, answer in accuracy.verify_golds(examples)]
  assert [a[: len(b)] for a, b in zip(wrong, bad, strict=True)] == bad
  assert all(answers.grade(e, e.answer) == 1.0 for e in examples)
