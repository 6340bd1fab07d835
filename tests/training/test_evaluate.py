"""What k completions of a problem show, and what they do not."""

import json
import math
import pathlib

import numpy as np
import pytest

from r1jax import config
from r1jax.data import chat
from r1jax.training import evaluate
from r1jax.training.evaluate import read_items, write_items
from r1jax.training.evaluator import Problems
from r1jax.training.measures import (
  completions,
  consensus,
  measure,
  pass_at_k,
  summarise,
  thought,
)
from r1jax.types import (
  FINISH_LENGTH,
  FINISH_STOP,
  Completion,
  Example,
  Rollout,
  within_lengths,
)

SUM = Example("1 + 1 =", "2", "reasoning_gym/chain_sum")


def say(answer, thinking="1+1=2", tokens=10, finish="stop"):
  text = f"<think> {thinking} </think> <answer> {answer} </answer>"
  return Completion(text, num_tokens=tokens, max_tokens=20, finish=finish)


@pytest.mark.parametrize(
  "k, expected", [(1, 0.25), (2, 0.45), (4, 0.728022), (8, 0.961538), (16, 1.0)]
)
def test_pass_at_k_is_unbiased(k, expected):
  assert pass_at_k(16, 4, k) == pytest.approx(expected, abs=1e-6)


def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one():
  rng = np.random.default_rng(0)
  samples = np.array([1] * 3 + [0] * 7)
  draws = [rng.permutation(samples)[:4].any() for _ in range(20_000)]
  assert pass_at_k(10, 3, 4) == pytest.approx(np.mean(draws), abs=0.02)


def test_pass_at_k_of_none_and_of_all():
  assert pass_at_k(5, 0, 5) == 0.0
  assert pass_at_k(5, 5, 1) == 1.0
  for k in (0, 6):
    with pytest.raises(ValueError, match=f"pass@{k} needs"):
      pass_at_k(5, 2, k)


@pytest.mark.parametrize(
  "answers, correct, expected",
  [
    (["2", "3", "2"], [1, 0, 1], 1.0),
    (["3", "3", "2"], [0, 0, 1], 0.0),
    ([None, None, None, "2"], [0, 0, 0, 1], 1.0),  # None does not vote.
    ([None, None], [0, 0], 0.0),
    (["02", "3", "+2.0", "3", " 2 "], [1, 0, 1, 0, 1], 1.0),  # Equal by value.
    (["2", "3"], [1, 0], 1.0),  # The first of equally many.
    (["3", "2"], [0, 1], 0.0),
    (["2", "2", "3"], [np.nan, 1, 0], 1.0),
  ],
)
def test_the_most_frequent_answer_counts(answers, correct, expected):
  assert consensus(SUM, answers, np.nan_to_num(correct)) == expected


def test_the_numbers_of_a_small_evaluation():
  examples = [SUM, SUM._replace(answer="5")]
  written = [
    [say("2"), say("2", "check wait", 20), say("3", ""), say("2")],
    [say("4", tokens=4), say("5"), say("4"), Completion("5", 20, 20, "length")],
  ]
  correct = np.array([[1, 1, 0, 1], [0, 1, 0, np.nan]])
  formatted = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], float)
  parts = dict(accuracy=correct, format=formatted)
  got = measure(examples, written, parts)
  expected = {
    "pass@1": (3 / 4 + 1 / 4) / 2,
    "pass@1_stderr": np.std([3 / 4, 1 / 4], ddof=1) / math.sqrt(2),
    "pass@4": 1.0,
    "cons@4": 0.5,
    "mean_length": (10 + 20 + 10 + 10 + 4 + 10 + 10 + 20) / 8,
    "truncated": 1 / 8,
    "unparsed": 1 / 8,
    "guess_share": 2 / 8,
    # One long, right; five short, three right; two guesses, none right.
    "best_style_pass@1": 1.0,
    "format": 7 / 8,
    "format_stderr": 1 / 8,
  }
  assert got.keys() == expected.keys()
  for name, number in expected.items():
    assert got[name] == pytest.approx(number), name


def test_rare_styles_are_not_rated():
  written = [[say("2", "check")] + [say("3")] * 39]
  correct = np.array([[1.0] + [0.0] * 39])
  parts = dict(accuracy=np.tile(correct, (2, 1)))
  got = measure([SUM] * 2, written * 2, parts)
  assert got["best_style_pass@1"] == 0.0


def test_one_problem_alone_has_no_standard_error():
  parts = dict(accuracy=np.array([[1.0, 0]]))
  got = measure([SUM], [[say("2"), say("3")]], parts)
  assert got["pass@1"] == 0.5
  assert math.isnan(got["pass@1_stderr"])


def test_one_sample_each_is_enough():
  got = measure([SUM] * 2, [[say("2")]] * 2, dict(accuracy=np.ones((2, 1))))
  assert got["pass@1"] == got["cons@1"] == 1.0


def test_prompts_of_evaluation_begin_with_bos_where_one_is_asked_for():
  class Words:
    vocab_size, eos_ids, prefix_ids = 9, (2,), (1,)

    def encode(self, text):
      return [len(text)]

    def decode(self, ids):
      return ""

  asked = chat.encode_prompts([Example("ab", ""), SUM], "plain", Words())
  assert asked == [[1, 3], [1, len(SUM.prompt) + 1]]


def test_completions_are_told_by_length_and_finish():
  """Never by looking for an id, and EOS is no text."""

  class Words:
    vocab_size, eos_ids = 9, (2,)
    prefix_ids = ()

    def encode(self, text):
      return []

    def decode(self, ids):
      return "".join(str(i) for i in ids if i != 2)

  rollout = Rollout(
    prompts=np.zeros((2, 1), np.int32),
    prompt_lengths=np.ones(2, np.int32),
    completions=np.array([[[5, 0, 2], [0, 2, 7]], [[8, 8, 8], [2, 1, 1]]]),
    lengths=np.array([[3, 2], [3, 1]]),
    finish=np.array([[FINISH_STOP, FINISH_STOP], [FINISH_LENGTH, FINISH_STOP]]),
    sampled_mask=within_lengths(np.array([[3, 2], [3, 1]]), 3),
    logprobs=np.zeros((2, 2, 3), np.float32),
  )
  examples = [SUM, SUM._replace(id="second")]
  flat, written = completions(rollout, examples, Words(), 3)
  assert flat == [examples[0]] * 2 + [examples[1]] * 2
  assert written == [
    Completion("50", 3, 3, "stop"),
    Completion("0", 2, 3, "stop"),
    Completion("888", 3, 3, "length"),
    Completion("", 1, 3, "stop"),
  ]


def test_a_thought_stands_between_its_tags():
  assert thought("<think> a </think> <answer> 1 </answer>") == " a "
  assert thought("no tags") == ""
  assert thought("<think> cut") == " cut"


def row(step, tasks, **numbers):
  keys = ("pass@1_stderr", "cons@4", "pass@4", "guess_share", "mean_length")
  keys += ("best_style_pass@1",)
  return {"step": step} | {
    f"eval/{task}/{key}": numbers.get(key, 0.5)
    for task in tasks
    for key in ("pass@1", *keys)
  }


def test_the_summary_compares_first_and_last():
  rows = [
    row(0, ["a", "b"], **{"pass@1": 0.1, "mean_length": 10.0}),
    {"step": 2, "reward/mean": 0.5},
    row(4, ["a", "b"], **{"pass@1": 0.4}),
    row(8, ["a", "b"], **{"pass@1": 0.9, "mean_length": 30.0}),
  ]
  rows[0] |= row(0, ["a+1"], **{"pass@1": 0.0})
  rows[-1] |= row(8, ["a+1"], **{"pass@1": 0.2})
  got = summarise(rows, rl_steps=8)
  assert {*got["tasks"]} == {"a", "b"} and {*got["larger"]} == {"a+1"}
  assert got["tasks"]["a"]["base_pass_at_1"] == 0.1
  assert got["tasks"]["b"]["zero_pass_at_1"] == 0.9
  assert got["larger"]["a+1"]["zero_pass_at_1"] == 0.2
  assert got["zero_pass_at_1"] == pytest.approx(0.9)
  assert got["zero_mean_length"] == 30.0 and got["rl_steps"] == 8
  needed = {
    "base_pass_at_1",
    "zero_pass_at_1",
    "base_cons_at_16",
    "zero_cons_at_16",
    "base_pass_at_16",
    "base_guess_share",
    "base_best_style_pass_at_1",
    "base_mean_length",
    "zero_mean_length",
  }
  assert needed <= got["tasks"]["a"].keys()
  assert needed <= got.keys()
  # A base that was measured late is the base.
  assert summarise([*rows[1:], rows[0]], rl_steps=8) == got
  with pytest.raises(ValueError, match="no evaluation of step 0.*run again"):
    summarise(rows[1:], rl_steps=8)


def test_a_part_that_does_not_apply_counts_in_no_mean():
  """The standard error is that of problems, of those that have a value."""
  written = [[say("2"), say("2")]] * 3
  parts = dict(
    accuracy=np.ones((3, 2)),
    language=np.array([[1.0, 0.5], [np.nan, np.nan], [0.25, np.nan]]),
  )
  got = measure([SUM] * 3, written, parts)
  assert got["language"] == pytest.approx((0.75 + 0.25) / 2)
  error = np.std([0.75, 0.25], ddof=1) / math.sqrt(2)
  assert got["language_stderr"] == pytest.approx(error)


def test_what_was_written_of_a_set_is_read_again(tmp_path):
  problems = Problems("sums", [SUM, SUM._replace(id="b")], 2)
  written = [[say("2"), say("3", tokens=4)], [say("\u2028"), say("é")]]
  parts = dict(
    accuracy=np.array([[1, 0], [0, 0.0]]), format=np.array([[1, np.nan]] * 2)
  )
  file = tmp_path / "items" / "sums.jsonl"
  write_items(file, problems, written, parts)
  again, scores = read_items(file)
  assert again == written
  for name, values in parts.items():
    np.testing.assert_array_equal(scores[name], values)


@pytest.fixture
def tiny_config():
  root = pathlib.Path(__file__).parents[2]
  return config.load(
    f"{root / 'experiments' / 'evaluate.py'}:tiny",
    {
      "cpu_devices": 1,
      "mesh.data": 1,
      "problems.sets.test.count": 2,
      "problems.sets.test.samples": 2,
      "problems.sets.test.dataset.size": 60,
      "sampling.num_slots": 4,
      "sampling.max_tokens": 48,
      "grader.num_workers": 1,
    },
  )


@pytest.mark.slow
def test_a_model_is_evaluated_by_a_run_of_its_own(
  tiny_config, tmp_path, monkeypatch
):
  """A task that has been evaluated is not evaluated again."""
  config.check(tiny_config)
  got = evaluate.train(tiny_config, str(tmp_path))
  assert got.keys() == {"chain_sum", "spell_backward", "countdown"}
  for measured in got.values():
    assert 0 <= measured["pass@1"] <= 1 and measured["mean_length"] <= 48
    assert 0 <= measured["format"] <= 1
  results = json.loads((tmp_path / "results.json").read_text())
  for task, measured in got.items():
    np.testing.assert_equal(results[task], measured)
    lines = (tmp_path / "items" / f"{task}.jsonl").read_text().splitlines()
    assert len(lines) == 4
  (tmp_path / "items" / "countdown.jsonl").unlink()
  sampled, honest = [], evaluate.sample_set

  def spy(engine, params, problems, *args, **kwargs):
    sampled.append(problems.name)
    return honest(engine, params, problems, *args, **kwargs)

  monkeypatch.setattr(evaluate, "sample_set", spy)
  np.testing.assert_equal(evaluate.train(tiny_config, str(tmp_path)), got)
  assert sampled == ["countdown"]


@pytest.mark.slow
def test_requests_without_a_right_answer_have_other_metrics(
  tiny_config, tmp_path
):
  requests = dict(name="general", split="test", size=30, seed=0)
  with tiny_config.unlocked():
    tiny_config.problems.sets.general = dict(
      dataset=requests, samples=2, count=1
    )
    tiny_config.rewards = dict(
      reasoning_gym=dict(accuracy=1.0, language=0.0),
      general=dict(quality=1.0, language=0.0),
    )
  config.check(tiny_config)
  got = evaluate.train(tiny_config, str(tmp_path))
  assert got["greeting"].keys() == {
    *("mean_length", "truncated", "quality", "quality_stderr"),
    *("language", "language_stderr"),
  }
  assert got["chain_sum"].keys() > {"pass@1", "language"}
  assert "quality" not in got["chain_sum"]


def test_a_dataset_of_one_task_is_a_set_named_by_its_label(tmp_path):
  file = tmp_path / "sums.jsonl"
  file.write_text('{"problem": "1 + 1", "answer": "2"}\n' * 3)
  dataset = dict(name="problems", path=str(file))
  one = dict(dataset=dataset, samples=4, count=2)
  (made,) = evaluate.problem_sets(sets={"mine": one})
  assert made.name == "mine" and made.samples == 4 and len(made.examples) == 2
  tasks = dict(chain_sum={}, spell_backward={})
  gym = dict(name="reasoning_gym", tasks=tasks, split="test", size=8, seed=0)
  several = dict(dataset=gym, samples=1, count=3)
  sets = evaluate.problem_sets(sets={"mine": one, "gym": several})
  assert [x.name for x in sets] == ["mine", "chain_sum", "spell_backward"]
  with pytest.raises(ValueError, match="two sets of problems are named 'chain"):
    evaluate.problem_sets(sets={"chain_sum": one, "gym": several})


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(samples=0), "problems.sets.test.samples is 0"),
    (dict(smples=1), "unknown config key 'problems.sets.test.smples'"),
    (dict(dataset=dict(name="nothing")), "problems.sets.test.dataset.name"),
  ],
)
def test_a_set_that_is_none_is_refused(tiny_config, change, message):
  with tiny_config.unlocked():
    tiny_config.problems.sets.test.update(change)
  with pytest.raises(ValueError, match=message):
    config.check(tiny_config)
