"""Mathematics: what is equal, and the traps of the library that decides."""

import pytest

from r1jax.rewards import accuracy, math
from r1jax.types import Completion, Example

RIGHT = [
  ("6", r"\boxed{6}"),
  ("6", "<answer>6</answer>"),
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


def test_a_gold_that_cannot_be_read_grades_nothing():
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


def test_the_last_balanced_box_is_found():
  assert math.last_boxed(r"\boxed{1} \boxed{\frac{1}{2}} .") == r"\frac{1}{2}"
  assert math.last_boxed(r"\boxed{1} \boxed{2") is None
  assert math.last_boxed("1") is None
