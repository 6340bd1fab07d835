"""Problems of every form, and the answers of published sets as they are."""

import json
import logging
import re
from pathlib import Path

import pytest

from r1jax import config, data
from r1jax.data import problems
from r1jax.rewards import accuracy
from r1jax.types import Completion

SHARED = Path(__file__).parents[2] / "../shared"
DATA, CASES = SHARED / "data", SHARED / "cases/loaders.jsonl"
needs_data = pytest.mark.skipif(
  not DATA.exists(), reason="there is no ../shared/data"
)


def write(tmp_path, *rows, name="problems.jsonl"):
  """A file of lines: rows, or text as it stands."""
  path = tmp_path / name
  lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
  path.write_text("".join(line + "\n" for line in lines))
  return path


def load_row(tmp_path, row, **kwargs):
  """The example that a file of one row holds."""
  (example,) = problems.load(path=write(tmp_path, row), **kwargs)
  return example


def answer(tmp_path, value, **kwargs):
  row = dict(problem="P", answer=value)
  return load_row(tmp_path, row, **kwargs).answer


def test_both_forms_of_gsm8k_are_read(tmp_path):
  path = write(
    tmp_path,
    dict(problem=" 1+1? ", answer="2"),
    dict(question="Half?", answer="Take <<2/2=1>>1.\n#### 1,000"),
    dict(problem="1?", answer=1),
  )
  examples = problems.load(path=path, domain="math/gsm8k")
  assert [e.prompt for e in examples] == ["1+1?", "Half?", "1?"]
  assert [e.answer for e in examples] == ["2", "1000", "1"]
  assert examples[1].id == "problems.jsonl:2"
  assert examples[1].domain == "math/gsm8k"
  assert accuracy.verify_golds(examples) == []


@pytest.mark.skipif(not CASES.exists(), reason="there is no ../shared/cases")
def test_every_known_case_is_right(tmp_path):
  for line in CASES.read_text(encoding="utf-8").splitlines():
    case = json.loads(line)
    path = write(tmp_path, case.get("line") or case["row"], name="one.jsonl")
    if case["want_answer"] is None:
      with pytest.raises(ValueError, match=r"one\.jsonl:1: .*") as error:
        problems.load(path=path)
      assert "\n" not in str(error.value)
    else:
      (example,) = problems.load(path=path)
      assert example.answer.split() == case["want_answer"].split(), case


@pytest.mark.parametrize(
  ("written", "read"),
  [
    ("1,234,567.89", "1234567.89"),
    ("+1,500", "+1500"),
    ("-$2,000", "-2000"),
    ("\\$115,000", "115000"),
    ("$1,234$", "$1234$"),
    ("1,234 apples", "1234 apples"),
    ("x = 12,000", "x = 12000"),
    ("1,500\\%", "1500\\%"),
  ],
)
def test_thousands_of_one_number_are_joined(tmp_path, written, read):
  assert answer(tmp_path, written) == read
  assert answer(tmp_path, f"So.\n#### {written}") == read
  assert answer(tmp_path, written, domain="logic") == written


@pytest.mark.parametrize(
  "written",
  [
    *("1,2", "0,123", "12,34", "1,23,456", "1234,567", "1,2345", "1, 234"),
    *(
      "(1,234)",
      "[100,200]",
      r"\{1,100\}",
      "1,234, 5,678",
      "1,234;5",
      "(2,100]",
    ),
    *(
      "1,234+5",
      "x_1,234",
      r"\frac{1,234}{5}",
      "1,006,3",
      "2.5,100",
      "|1,000|",
    ),
    *(r"(1,1006),(3,331)", r"11,\! 111", "1{,}234", "a,b,c", ","),
  ],
)
def test_other_commas_stay(tmp_path, written):
  assert answer(tmp_path, written) == written


@pytest.mark.parametrize(
  ("row", "expected"),
  [
    (dict(problem="P", final_answer=["$2$"]), "$2$"),
    (dict(problem="P", answer=["3", 5, "-7"]), "3, 5, -7"),
    (dict(problem="P", answer='["3", "1,500"]'), "3, 1500"),
    (dict(problem="P", answer='["3"'), '["3"'),
    (dict(problem="P", answer="3", options="A) 3 B) 4"), "3"),
    (dict(problem="P", expected_answer=0.5), "0.5"),
    (dict(problem="P", answer=1e-7), "0.0000001"),
    (dict(problem="P", answer=10**20), "1" + "0" * 20),
    (dict(problem="P", answer=2.5e20), "250000000000000000000"),
    (dict(problem="P", answer=None, solution=r"So \boxed{\frac{1}{2}}."),
     r"\frac{1}{2}"),
    (dict(problem="P", solution=r"\boxed{1} is not, \boxed{\{a, \{b\}\}} is"),
     r"\{a, \{b\}\}"),
    (dict(problem="P", solution="42"), "42"),
    (dict(problem="P", answer=r"\boxed{1,234}"), "1234"),
    (dict(problem="P", answer=r"\boxed{1", solution="2"), r"\boxed{1"),
    (dict(text="P", ground_truth="7"), "7"),
    (dict(prompt=[dict(role="user", content="P")], data_source="dapo",
          reward_model=dict(style="rule", ground_truth="34")), "34"),
    ({"prompt": "P", "reward_model.ground_truth": "34"}, "34"),
  ],
)  # fmt: skip
def test_the_common_sets_are_read_as_they_are(tmp_path, row, expected):
  example = load_row(tmp_path, row)
  assert (example.prompt, example.answer) == ("P", expected)


def test_a_config_can_name_the_fields_of_a_row(tmp_path):
  extra = dict(gold=["x", "y"], kind="logic/web")
  row = dict(Frage="P", extra=extra, lang="de", answer="no")
  fields = dict(
    prompt="Frage",
    answer=("missing", "extra.gold"),
    domain="extra.kind",
    language="lang",
  )
  example = load_row(tmp_path, row, fields=fields)
  assert example[:3] == ("P", '["x", "y"]', "logic/web")
  assert example.metadata["language"] == example.metadata["lang"] == "de"
  assert accuracy.grade(example, "['x','y']") == 1
  section = dict(name="problems", path="", fields=fields, domain="code")
  config.bind("dataset", section, data.DATASETS)
  with pytest.raises(ValueError, match="did you mean 'dataset.fields'"):
    config.bind("dataset", section | dict(field={}), data.DATASETS)


def test_other_fields_are_the_metadata(tmp_path):
  row = dict(problem="P", answer="1", lang="en", level=3, notes=None)
  example = load_row(tmp_path, row)
  assert example.metadata == dict(lang="en", level=3, notes=None)


def said(text):
  return Completion(f"<think>t</think>{text}")


@pytest.mark.parametrize(
  ("tests", "expected"),
  [
    (
      ["assert f(1) == 2", "assert f(2) == 3"],
      "assert f(1) == 2\nassert f(2) == 3",
    ),
    ("def check(f):\n  assert f(1) == 2",) * 2,
    ([dict(input="1", output="2")],) * 2,
    (dict(inputs=["1"], outputs=["2"]), [dict(input="1", output="2")]),
    ('{"inputs": ["1"], "outputs": ["2"]}', [dict(input="1", output="2")]),
    ('[{"input": "1", "output": "2"}]', [dict(input="1", output="2")]),
  ],
)
def test_tests_reach_the_code_reward(tmp_path, tests, expected):
  for name in ("tests", "test", "test_list", "input_output"):
    row = {"prompt": "P", name: tests, "entry_point": "f", "solution": "a\nb"}
    example = load_row(tmp_path, row, domain="code")
    assert example.metadata["tests"] == expected
    assert example.metadata["entry_point"] == "f"
    assert example.answer == ""


def test_choices_are_added_to_the_prompt(tmp_path):
  row = dict(question="Which?", choices=["red", "blue", 3], answer=1)
  example = load_row(tmp_path, row, domain="choice")
  assert example.prompt == "Which?\nA. red\nB. blue\nC. 3"
  assert example.answer == "B"
  assert accuracy.grade(example, "blue") == accuracy.grade(example, "(B)") == 1
  assert accuracy.grade(example, "red") == 0
  for options in (
    ["A)red", "B)blue", "C)3"],
    ["(A) red", "(B) blue", "(C) 3"],
    dict(text=["red", "blue", "3"], label=["A", "B", "C"]),
    dict(A="red", B="blue", C="3"),
  ):
    row = dict(question="Which?", options=options, answer="B")
    other = load_row(tmp_path, row, domain="choice")
    assert other[:2] == example[:2]
    assert other.metadata["choices"] == ["red", "blue", "3"]
  row = dict(
    question="A. red B. blue C. 3", options=["red", "blue", 3], answer=2
  )
  assert load_row(tmp_path, row, domain="choice").prompt == row["question"]


def test_instructions_need_no_answer(tmp_path):
  row = dict(
    prompt="P", instruction_id_list=["punctuation:no_comma"], kwargs=[{}], key=7
  )
  example = load_row(tmp_path, row, domain="instructions")
  assert accuracy.reward(example, said("a b")) == 1
  assert accuracy.reward(example, said("a, b")) == 0


@pytest.mark.parametrize(
  ("line", "kwargs", "message"),
  [
    ('{"question": "q", "answer": NaN}', {}, "not JSON: NaN is not JSON"),
    ('{"question": "q", "answer": -Infinity}', {}, "-Infinity is not JSON"),
    ('{"question": "q", "answer": 1e999}', {}, "not JSON: 1e999 is not JSON"),
    ('{"question": "q", "answer": [1, NaN]}', {}, "not JSON: NaN is not JSON"),
    (
      r'{"question": "a\ud800b", "answer": 5}',
      {},
      r"\\ud800 alone is not a ch",
    ),
    (
      r'{"question": "a", "answer": "\udc00"}',
      {},
      r"\\udc00 alone is not a ch",
    ),
    (r'{"q\uDBFF": "a", "answer": "5"}', {}, r"\\udbff alone is not a ch"),
    ('{"question": "q", "answer": null}', {}, "'answer' is null or missing"),
    ('{"question": "q"}', {}, "'answer or .*' is null or missing"),
    ('{"question": "q", "answer": ""}', {}, "'answer' must be text, got ''"),
    ('{"question": "q", "answer": []}', {}, r"'answer' must be text, got \[\]"),
    ('{"question": "q", "answer": [null]}', {}, "must be text, got None"),
    ('{"question": "q", "answer": true}', {}, "must be text, got True"),
    ('{"question": "q", "answer": {"a": 1}}', {}, "must be text, got {"),
    ('{"question": "q", "answer": "so\\n####"}', {}, "nothing follows ####"),
    ('{"question": "q", "solution": "so\\nit is"}', {}, "does not mark its"),
    ('{"question": " ", "answer": "1"}', {}, "'question' must be text"),
    ('{"answer": "1"}', {}, "'problem or question or .*' must be text"),
    ('{"prompt": [], "answer": "1"}', {}, "one message of a user, got"),
    ('{"prompt": ["q"], "answer": "1"}', {}, "one message of a user, got"),
    ('{"prompt": "q"}', dict(domain="code"), "'tests or .*'code' need it"),
    (
      '{"prompt": "q"}',
      dict(domain="instructions"),
      "'instruction_id_list' is",
    ),
    (
      '{"prompt": "q", "choices": ["a"], "answer": 1}',
      dict(domain="choice"),
      "'answer' is 1, but has 1 choices",
    ),
    (
      '{"prompt": "q", "choices": "a", "answer": 1}',
      dict(domain="choice"),
      "choices must be a list, got 'a'",
    ),
    ("[1]", {}, "must be a JSON object, got a list"),
    ('{"question": "q"', {}, "not JSON"),
    ('{"question": "q", "answer": "1"} x', {}, "not JSON: Extra data"),
    ("", {}, "no problems in it"),
  ],
)
def test_a_file_without_a_problem_is_refused(tmp_path, line, kwargs, message):
  path = write(tmp_path, line)
  where = "problems.jsonl" + ("" if "no problems" in message else ":1")
  with pytest.raises(ValueError, match=f"{where}: .*{message}") as error:
    problems.load(path=path, **kwargs)
  assert "\n" not in str(error.value)


def test_unusual_but_valid_rows_are_read(tmp_path):
  line = r'{"question": "a\ud83d\ude00b NaN", "answer": "Infinity"}'
  example = load_row(tmp_path, line)
  assert (example.prompt, example.answer) == ("a\U0001f600b NaN", "Infinity")


def test_a_few_invalid_rows_are_skipped_with_a_warning(tmp_path, caplog):
  caplog.set_level(logging.WARNING)
  good = [dict(problem=f"{i}?", answer=str(i)) for i in range(18)]
  path = write(tmp_path, *good, '{"problem": ', dict(problem="no answer"))
  assert len(problems.load(path=path)) == 18
  told = [record.getMessage() for record in caplog.records]
  assert told[0].startswith(f"skipped {path}:19: not JSON")
  assert told[1].startswith(f"skipped {path}:20: 'answer")
  assert told[2:] == [f"skipped: 2 of 20 rows of {path} cannot be used"]
  with pytest.raises(
    ValueError, match=r"jsonl:19: .* \(2 of 20 rows .*; max_skipped is 0\)"
  ):
    problems.load(path=path, max_skipped=0.0)
  bad = write(tmp_path, *good, *["{}"] * 3)
  with pytest.raises(ValueError, match="jsonl:19: .*3 of 21 rows"):
    problems.load(path=bad)
  with pytest.raises(ValueError, match="jsonl:1: "):
    problems.load(path=write(tmp_path, "{}"), max_skipped=1.0)


def numbered(count):
  return [dict(problem=f"{i}+1?", answer=str(i + 1)) for i in range(count)]


def test_train_and_test_splits_make_up_the_file(tmp_path):
  path = write(tmp_path, *numbered(300))
  train, test = (
    {e.id for e in problems.load(path=path, split=split)}
    for split in ("train", "test")
  )
  assert not train & test
  assert len(train | test) == 300
  assert 10 < len(test) < 60
  with pytest.raises(ValueError, match="is in the split 'test'"):
    problems.load(path=write(tmp_path, *numbered(1)), split="test")
  with pytest.raises(ValueError, match="got 'valid'"):
    problems.load(path=path, split="valid")


@needs_data
@pytest.mark.parametrize(
  ("name", "count"),
  [
    ("eval/math_math500", 500),
    ("eval/math_olympiadbench_en", 337),
    ("eval/math_aime2024", 30),
    ("eval/math_amc23", 40),
    ("eval/math_gsm8k_test", 1319),
    pytest.param("train/math_gsm8k_train", 7473, marks=pytest.mark.slow),
    ("eval/math_gaokao_cloze_zh", 118),
    ("eval/math_cmath_test_zh", 529),
    ("train/math_cmath_dev_zh", 577),
    pytest.param("train/math_math_train", 7380, marks=pytest.mark.slow),
  ],
)
def test_published_answers_are_read_unchanged(name, count):
  path = DATA / f"{name}.jsonl"
  raw = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
  examples = problems.load(path=path)
  assert len(examples) == len(raw) == count
  for example, row in zip(examples, raw):
    expected = row["answer"].strip()
    if re.fullmatch(r"(\\\$)?\d{1,3}(,\d{3})+", expected):
      expected = expected.removeprefix("\\$").replace(",", "")
    assert example.answer == expected
    assert example.prompt == row["problem"].strip()


@needs_data
@pytest.mark.slow
def test_every_gold_of_gsm8k_verifies_against_itself():
  for name in ("train/math_gsm8k_train", "eval/math_gsm8k_test"):
    examples = problems.load(path=DATA / f"{name}.jsonl")
    assert accuracy.verify_golds(examples) == []


@needs_data
@pytest.mark.parametrize(
  ("name", "domain", "count"),
  [
    ("eval/code_humaneval", "code", 81),
    ("eval/code_mbpp_test", "code", 500),
    ("eval/code_stdin_codecontests", "code", 100),
    ("eval/ifeval", "instructions", 541),
    ("eval/mcq_mmlu_stem", "choice", 600),
    ("eval/mcq_aqua", "choice", 254),
    ("eval/mcq_gaokao_mathqa_zh", "choice", 351),
  ],
)
def test_published_sets_reach_their_graders(name, domain, count):
  examples = problems.load(path=DATA / f"{name}.jsonl", domain=domain)
  assert len(examples) == count
  for example in examples:
    if domain == "code":
      assert example.metadata["tests"]
    elif domain == "choice":
      assert accuracy.grade(example, example.answer) == 1
      assert accuracy.grade(example, "Z") == 0
    else:
      assert accuracy.reward(example, said("")) in (0, 1)
