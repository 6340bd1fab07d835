"""What counts as the final answer, and as a right one."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.rewards import accuracy
from r1jax.rewards.maths import arithmetic
from r1jax.rewards.tasks import reasoning_gym
from r1jax.types import Completion, Example

SUM = Example("1 + 11 =", "12", "reasoning_gym/chain_sum")
WORD = Example("Backward: Sun", "nuS", "reasoning_gym/spell_backward")
NUMBERS = dict(numbers=[1, 5, 4], target=6)
COUNTDOWN = Example(
  "Make 6 of 1, 5, 4", "-4 + 5*1 + 5", "reasoning_gym/countdown", "", NUMBERS
)
FORTY = COUNTDOWN._replace(metadata=dict(numbers=[4, 4, 19, 35], target=40))
TEXT = Example("Capital of France?", "Paris", "trivia")

HOSTILE = st.lists(
  st.one_of(
    st.sampled_from(
      ["<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "}", "{"]
      + ["12", "+012.0", "nus", "5 + 4", "(", ")" * 40, "((" * 99, "/0", "-"]
      + ["**", "9**9**9", "//", "1e999999999", "NaN", "sNaN", "Infinity", "1_2"]
      + ["__import__('os').system('true')", "\0", "\ud800", "\u202e", "١٢"]
      + ["a" * 300, "9" * 300, "," * 5, "⁵", "½", "ß", "İ"]
    ),
    st.text(max_size=8),
    st.text("0123456789+-*/(). ", max_size=12),
  ),
  max_size=10,
).map("".join)


def write(answer: str) -> Completion:
  return Completion(f"<think>hm</think><answer>{answer}</answer>")


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("", None),
    ("<answer>1</answer>", None),
    ("<think><answer>1</answer>", None),
    ("<think><answer>1</answer></think>", None),
    ("<think></think>1", None),
    ("<think></think><answer>1", None),
    ("<think></think>1</answer>", None),
    ("</think><answer>1</answer>", "1"),
    ("<think></think> <answer>\n 1 \n</answer> bye", "1"),
    ("</think><answer>1</answer><answer>2</answer>", "2"),
    ("</think><answer>1</answer></think><answer>2</answer>", "2"),
    ("</think><answer>1<answer>2</answer>", "2"),
    ("</think><answer>1</answer><answer>2", "1"),
    ("</think><answer></answer>", ""),
    (r"</think>so \boxed{1}", "1"),
    (r"</think>\boxed{1} or \boxed{\frac{1}{2}}", r"1 or \frac{1}{2}"),
    (r"</think>\boxed{1}, no, \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    ("</think>So.\n\n**Answer: 2**", "2**"),
    (r"</think>\boxed{1} <answer>2</answer>", "2"),
    (r"</think><answer>it is \boxed{ 1 }</answer>", "1"),
    (r"</think><answer>1</answer> \boxed{2}", "2"),
    (r"</think>\boxed{\boxed{1}}", "1"),
    (r"</think>\boxed{1} no, \boxed{2", None),
    (r"<think>\boxed{1}</think>", None),
    ("</think>So it is.\n#### 1,000", "1,000"),
    ("</think>So it is.\nA: 12\n", "12"),
    ("</think>A: 12\nor so", None),
    ("<think>A: 12", None),
  ],
)
def test_the_last_answer_after_the_thinking_is_extracted(text, expected):
  assert accuracy.extract(text) == expected
  assert accuracy.extract(Completion(text)) == expected


@pytest.mark.parametrize(
  ("example", "answer", "expected"),
  [
    (SUM, "12", 1.0),
    (SUM, "+012.0", 1.0),
    (SUM, "13", 0.0),
    (SUM, "112", 0.0),
    (SUM, "12 or 13", 0.0),
    (SUM, "1+11", 0.0),
    (SUM, "", 0.0),
    (WORD, "nuS", 1.0),
    (WORD, "nus", 1.0),
    (WORD, "nu", 0.0),
    (WORD, "nussun", 0.0),
    (COUNTDOWN, "5 + 1*4 - 3", 0.0),
    (COUNTDOWN._replace(metadata=dict(NUMBERS, target=10)), "5+1+4", 1.0),
    (COUNTDOWN._replace(metadata=dict(NUMBERS, target=8)), "5 - 1 + 4", 1.0),
    (COUNTDOWN._replace(metadata=dict(NUMBERS, target=8)), "-(1-5) + 4", 1.0),
    (COUNTDOWN, "1.5*4", 0.0),
    (COUNTDOWN, "5+1", 0.0),
    (COUNTDOWN, "5+1+4-4", 0.0),
    (COUNTDOWN, "6", 0.0),
    (COUNTDOWN, "5+1*(4/0)", 0.0),
    (COUNTDOWN, "(5+1", 0.0),
    (COUNTDOWN, "5+1+4 = 10", 0.0),
    (COUNTDOWN, "5//1+4", 0.0),
    (COUNTDOWN, "__import__('time').sleep(100)", 0.0),
    (FORTY, "44**19**35", 0.0),
    (FORTY, "9**9**9", 0.0),
    (TEXT, " paris ", 1.0),
    (TEXT, "Paris, France", 0.0),
  ],
)
def test_the_domain_picks_the_grader(example, answer, expected):
  assert accuracy.reward(example, write(answer)) == expected


def test_a_right_answer_in_the_thinking_is_worth_nothing():
  text = "<think><answer>12</answer></think>"
  assert accuracy.reward(SUM, Completion(text)) == 0.0


def test_a_scorer_of_the_library_executes_the_answer(tmp_path):
  """Why the guard is there; if this fails, the library has become safe."""
  path = tmp_path / "owned"
  code = f"__import__('pathlib').Path({str(path)!r}).touch()"
  entry = dict(question="", answer="", metadata=NUMBERS)
  reasoning_gym._scorer("countdown")(code, entry)
  assert path.exists()
  path.unlink()
  assert reasoning_gym.grade(COUNTDOWN, code) == 0.0
  assert not path.exists()


def test_a_task_that_may_hand_the_answer_to_any_scorer_is_refused():
  with pytest.raises(ValueError, match="composite.*single tasks"):
    accuracy.reward(SUM._replace(domain="reasoning_gym/composite"), write("1"))


@pytest.mark.parametrize("task", sorted(reasoning_gym.GUARDS))
def test_no_scorer_is_shown_code_and_all_are_shown_their_answers(task):
  from reasoning_gym import create_dataset

  code = "__import__('os')._exit(7)"
  for entry in create_dataset(task, size=8, seed=1):
    example = Example(
      entry["question"],
      entry["answer"],
      f"reasoning_gym/{task}",
      metadata=entry["metadata"],
    )
    if entry["answer"] and "Integral" not in entry["answer"]:
      assert reasoning_gym.grade(example, entry["answer"]) == 1.0
    for answer in (code, f"[{code}]", f"(1, {code})", "9**9**9", "2**99999"):
      assert reasoning_gym.grade(example, answer) == 0.0


def test_copying_the_problem_does_not_solve_an_integral():
  assert not reasoning_gym.is_formula("Integral(x**2, x)")
  assert reasoning_gym.is_formula("-2*x**3*cos(x) + log(x)/3.5 + C")


def test_every_scorer_that_executes_text_is_guarded_or_refused():
  import inspect

  from reasoning_gym import factory

  executing = {
    task
    for task, (dataset, _) in factory.DATASETS.items()
    if any(
      call in inspect.getsource(dataset.score_answer)
      for call in ("eval(", "exec(", "parse_expr(", "sympify(")
    )
  }
  executing -= {"propositional_logic", "number_sorting"}  # Their own answers.
  assert executing <= {*reasoning_gym.GUARDS} | reasoning_gym.REFUSED


@given(HOSTILE, st.sampled_from([SUM, WORD, COUNTDOWN, TEXT]))
def test_any_text_gets_the_same_0_or_1_twice(text, example):
  for completion in (Completion(text), write(text)):
    first = accuracy.reward(example, completion)
    assert first in (0.0, 1.0)
    assert accuracy.reward(example, completion) == first


@given(HOSTILE, st.sampled_from([SUM, WORD, COUNTDOWN, TEXT]))
def test_any_answer_has_a_key_that_is_its_own_key(text, example):
  key = accuracy.canonical(example, text)
  assert accuracy.canonical(example, key) == key


@pytest.mark.parametrize(
  ("one", "other", "same"),
  [
    ("1", "+01.0", True),
    ("1000", "1,000", True),
    ("0.5", "1/2", True),
    ("-0", "0", True),
    ("1", "-1", False),
    ("12", "1 2", False),
    ("Nus", " nus\n", True),
    ("nus", "sun", False),
    ("3 + 4 - 5", "4-5+3", True),
    ("3 - (4 - 5)", "5 + 3 - 4", True),
    ("2*3 + 4", "4 + 2 * 3", True),
    ("3 - 4", "4 - 3", False),
    ("3 + 4", "7", False),
    ("9**9**9", "9**9**8", False),
  ],
)
def test_equal_answers_share_a_key(one, other, same):
  keys = {accuracy.canonical(SUM, one), accuracy.canonical(SUM, other)}
  assert len(keys) == (1 if same else 2)


@pytest.mark.parametrize(
  ("one", "other", "same"),
  [
    ("0.5", r"\dfrac12", True),
    ("5", r"x = 5\text{ cm}", True),
    (r"2\sqrt{3}", r"\sqrt{12}", True),
    ("x(x+1)", "x^2+x", True),
    ("East", r"\text{east}", True),
    ("(1,2)", r"\left( 1, 2 \right)", True),
    ("50%", r"50\%", True),
    ("5", "-5", False),
    ("x+1", "x-1", False),
    ("(1,2)", "(2,1)", False),
    ("9^{9^{9}}", "9^{9^{8}}", False),
  ],
)
def test_equal_mathematics_shares_a_key(one, other, same):
  example = SUM._replace(domain="math/500")
  keys = {accuracy.canonical(example, one), accuracy.canonical(example, other)}
  assert len(keys) == (1 if same else 2)


def test_a_letter_and_its_choice_share_a_key():
  example = Example("", "B", "choice", metadata=dict(choices=["Rome", "Paris"]))
  keys = {accuracy.canonical(example, a) for a in ("B", "(b)", "Paris")}
  assert keys == {"B"}
  assert accuracy.canonical(example, "Oslo") == "oslo"


@given(st.lists(st.integers(-999, 999), min_size=1, max_size=6), st.randoms())
def test_a_sum_in_any_order_has_one_key(values, random):
  def write_sum(values):
    return "0" + "".join(f" {'-+'[v >= 0]} {abs(v)}" for v in values)

  shuffled = random.sample(values, len(values))
  one, other = write_sum(values), write_sum(shuffled)
  assert accuracy.canonical(SUM, one) == accuracy.canonical(SUM, other)


def test_numbers_are_read_whole_or_not_at_all():
  read = arithmetic.number
  assert read("1,234.50") == 1234.5
  assert read(" -3/4 ") == -0.75
  assert read("\N{MINUS SIGN}2") == -2
  for text in (
    "",
    ".",
    "+",
    "1,23",
    "1e5",
    "1/0",
    "1/2/3",
    "0x1",
    "١",
    "9" * 300,
  ):
    assert read(text) is None


def test_a_mixture_of_domains_needs_one_reward():
  text = "<think></think><answer>{}</answer>"
  countdown = Example("", "", "countdown", "", NUMBERS | dict(target=10))
  commas = dict(instruction_id_list=["punctuation:no_comma"], kwargs=[{}])
  mixture = [
    (SUM, "12"),
    (Example("", r"\frac{1}{2}", "math/500"), "0.5"),
    (Example("", "B", "choice/aqua"), "(B)"),
    (Example("", "[1]", "logic"), "[1.0]"),
    (countdown, "5 + 1 + 4"),
    (Example("", "", "instructions", "", commas), "no"),
    (TEXT, "paris"),
  ]
  for example, answer in mixture:
    right = Completion(text.format(answer))
    wrong = Completion(text.format("no, 77"))
    assert accuracy.reward(example, right) == 1.0
    assert accuracy.reward(example, wrong) == 0.0
    assert accuracy.reward(example, Completion(answer)) == 0.0


def test_golds_that_do_not_verify_are_named():
  good = COUNTDOWN._replace(
    answer="5 + 4 + 1", metadata=dict(NUMBERS, target=10)
  )
  bad = COUNTDOWN._replace(id="file:7", answer="5 + 4")
  assert accuracy.verify_golds([SUM, WORD, good, TEXT, bad]) == [
    ("file:7", "5 + 4")
  ]


def test_examples_and_completions_can_be_pickled():
  assert pickle.loads(pickle.dumps(COUNTDOWN)) == COUNTDOWN
