"""How published evaluations ask, byte for byte, and their files are read."""

import json
import pathlib

import pytest

from r1jax import data
from r1jax.data import benchmarks
from r1jax.training.evaluate import problem_sets

SHARED = pathlib.Path(__file__).parents[2] / "../shared/data/eval"
FILES = {
  "aime24": "math_aime2024.jsonl",
  "amc23": "math_amc23.jsonl",
  "cmath": "math_cmath_test_zh.jsonl",
  "codecontests": "code_stdin_codecontests.jsonl",
  "gaokao": "math_gaokao_cloze_zh.jsonl",
  "gsm8k": "math_gsm8k_test.jsonl",
  "humaneval": "code_humaneval.jsonl",
  "ifeval": "ifeval.jsonl",
  "math500": "math_math500.jsonl",
  "mbpp": "code_mbpp_test.jsonl",
  "mgsm": "math_mgsm_11lang_eval.jsonl",
  "mmlu": "mcq_mmlu_stem.jsonl",
  "olympiadbench": "math_olympiadbench_en.jsonl",
}
ASKED = {
  ("math500", "paper"): "1 + 1?\nPlease reason step by step, and put your "
  "final answer within \\boxed{}.",
  ("gsm8k", "lm_eval"): "Question: 1 + 1?\nAnswer:",
  (
    "math500",
    "simple_evals",
  ): "Solve the following math problem step by step. The last line of your "
  "response should be of the form Answer: $ANSWER (without quotes) where "
  "$ANSWER is the answer to the problem.\n\n1 + 1?\n\nRemember to put your "
  'answer on its own line after "Answer:", and you do not need to use a '
  "\\boxed command.",
}


def ask(tmp_path, name, convention):
  file = tmp_path / "one.jsonl"
  file.write_text(json.dumps({"problem": "1 + 1?", "answer": "2"}))
  section = benchmarks.section(name, str(file), convention=convention)
  (example,) = data.load(**section["dataset"])
  return example


@pytest.mark.parametrize("name, convention", ASKED)
def test_a_question_is_asked_in_the_words_of_the_convention(
  tmp_path, name, convention
):
  example = ask(tmp_path, name, convention)
  assert example.prompt == ASKED[name, convention]
  assert example.answer == "2" and example.domain == f"math/{name}"


@pytest.mark.skipif(not SHARED.exists(), reason="there is no ../shared/data")
@pytest.mark.parametrize("name", FILES)
def test_the_published_files_can_be_asked(name):
  section = benchmarks.section(name, str(SHARED / FILES[name]), count=5)
  (made,) = problem_sets(sets={name: section})
  assert made.name == name and len(made.examples) == 5
  assert made.samples == benchmarks.BENCHMARKS[name].samples
  assert all(example.prompt.strip() for example in made.examples)


def test_the_paper_s_numbers_of_samples():
  of = lambda name: benchmarks.section(name, "f")["samples"]
  assert (of("aime24"), of("gpqa"), of("math500"), of("livecodebench")) == (
    *(64, 64, 16, 8),
  )
  assert benchmarks.section("aime24", "f", samples=2)["samples"] == 2


@pytest.mark.parametrize(
  "arguments, message",
  [
    (dict(name="math50"), "unknown benchmark 'math50'; did you mean 'math500'"),
    (dict(name="gpqa", convention="lm_eval"), "'lm_eval' has no prompt for"),
    (dict(name="gpqa", convention="papr"), "did you mean 'paper'"),
  ],
)
def test_what_does_not_exist_is_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    benchmarks.section(**arguments, path="f")
