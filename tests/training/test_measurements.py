"""What a round's numbers say, also of rounds in which little went right."""

import json
import math

import numpy as np
import pytest

from r1jax.data.packing import pack_rollout
from r1jax.models import flops
from r1jax.models.presets import preset
from r1jax.rewards import Scores, language
from r1jax.training import evaluator, languages, round_numbers
from r1jax.types import (
  FINISH_LENGTH,
  FINISH_STOP,
  Completion,
  Example,
  Rollout,
  within_lengths,
)

GROUP = 3
EXAMPLES = [
  Example("1 + 1 =", "2", f"toy/{task}", str(i))
  for i, task in enumerate("xyy")
  for _ in range(GROUP)
]
WRITTEN = [Completion(f"Wait, {i}: wait. Check", i + 1, 9) for i in range(9)]


def scores(accuracy, format=None, **counts):
  accuracy = np.array(accuracy, float)
  format = np.ones(9) if format is None else np.array(format, float)
  return Scores(
    accuracy + format,
    {"accuracy": accuracy, "format": format},
    dict(timeouts=0, crashes=0) | counts,
  )


def of_rewards(scores, advantages=None):
  advantages = np.zeros((3, GROUP)) if advantages is None else advantages
  return round_numbers.reward_numbers(scores, advantages, EXAMPLES)


def test_rewards_are_told_by_rule_and_by_task():
  advantages = np.array([[0, 0, 0], [-1, -1, 2], [0, 0, 0.0]])
  got = of_rewards(
    scores([1, 1, 1, 0, 0, 1, 0, 0, 0], [0] + [1] * 8, timeouts=2), advantages
  )
  expected = {
    "reward/mean": 4 / 9 + 8 / 9,
    "reward/accuracy/mean": 4 / 9,
    "reward/format/mean": 8 / 9,
    "reward/accuracy/none_frac": 0,
    "reward/frac_zero_std": 2 / 3,
    "reward/frac_all_correct": 1 / 3,
    "reward/frac_all_wrong": 1 / 3,
    "completions/tasks/x/accuracy": 1.0,
    "completions/tasks/y/accuracy": 1 / 6,
    "advantage/max": 2,
    "advantage/min": -1,
    "reward_infra/timeout_count": 2,
  }
  for name, number in expected.items():
    assert got[name] == pytest.approx(number), name


def test_the_deviation_of_rewards_is_that_within_groups():
  """Of three groups: one varies, one is even, one is graded in part."""
  nan = math.nan
  told = scores([1, 0, 0, 1, 1, 1, nan, 1, 0], format=np.zeros(9))
  groups = [[1, 0, 0], [1, 1, 1], [1, 0]]
  deviations = []
  for group in groups:
    mean = sum(group) / len(group)
    squares = sum((x - mean) ** 2 for x in group)
    deviations.append(math.sqrt(squares / len(group)))
  assert of_rewards(told)["reward/std"] == pytest.approx(sum(deviations) / 3)
  ungraded = scores([nan] * 3 + [1, 0, 0] + [nan] * 3)
  assert of_rewards(ungraded)["reward/std"] == pytest.approx(deviations[0])
  assert math.isnan(of_rewards(scores([nan] * 9))["reward/std"])


def test_what_could_not_be_graded_is_counted_and_not_averaged():
  nan = math.nan
  got = of_rewards(scores([1, nan, 0, nan, nan, nan, 1, 1, 1]))
  assert got["reward/accuracy/mean"] == pytest.approx(4 / 5)
  assert got["reward/accuracy/none_frac"] == pytest.approx(4 / 9)
  assert got["reward/mean"] == pytest.approx(4 / 5 + 1)


def test_a_round_without_any_grade_is_told_without_a_warning():
  got = of_rewards(scores([math.nan] * 9))
  assert math.isnan(got["reward/mean"])
  assert math.isnan(got["reward/accuracy/mean"])
  assert got["reward/accuracy/none_frac"] == 1.0


def rollout(lengths, finish):
  shape = np.shape(lengths)
  return Rollout(
    prompts=np.zeros((shape[0], 1), np.int32),
    prompt_lengths=np.ones(shape[0], np.int32),
    completions=np.zeros((*shape, 9), np.int32),
    lengths=np.array(lengths),
    finish=np.array(finish),
    sampled_mask=within_lengths(np.array(lengths), 9),
    logprobs=np.zeros((*shape, 9), np.float32),
  )


def test_lengths_are_told_with_and_without_those_cut_short():
  got = round_numbers.length_numbers(
    rollout([[2, 9], [5, 9]], [[FINISH_STOP] * 2, [FINISH_STOP, FINISH_LENGTH]])
  )
  assert got == {
    "completions/mean_length": 6.25,
    "completions/min_length": 2,
    "completions/max_length": 9,
    "completions/clipped_ratio": 0.25,
    "completions/eos_frac": 0.75,
    "completions/terminated_mean_length": pytest.approx(16 / 3),
    "completions/terminated_min_length": 2,
    "completions/terminated_max_length": 9,
  }
  cut = round_numbers.length_numbers(rollout([[9, 9]], [[FINISH_LENGTH] * 2]))
  assert math.isnan(cut["completions/terminated_mean_length"])


def test_words_of_reflection_are_counted():
  counts = round_numbers.reflection_counts(
    WRITTEN + [Completion("checked awaits"), None]
  )
  got = dict(zip(round_numbers.REFLECTION, counts))
  assert (got["wait"], got["check"]) == (18, 9)  # Whole words.
  assert got["mistake"] == 0


ENGLISH = "<think> The answer is what we are looking for here. </think> 2"
CHINESE = "<think> 我们先把这两个数加起来，再检查一遍。 </think> 2"
BOTH = "<think> The answer is what we want here. 我们再检查一遍。 </think> 2"
SIGNS = "<think> 1 + 1 = 2 </think> 2"


def spoken(*texts, prompt="What is it?"):
  written = [text and Completion(text) for text in texts]
  examples = [Example(prompt, "2")] * len(texts)
  return languages.count(examples, written)


def test_words_are_counted_by_the_language_of_thoughts():
  counts = spoken(ENGLISH, CHINESE, BOTH, SIGNS, None)
  by_language = dict(zip(language.LANGUAGES, counts))
  assert by_language["en"] == 9 + 7 and by_language["zh"] == 16 + 7
  assert counts[-2:].tolist() == [3, 1]  # Thoughts with words; mixed ones.
  numbers = languages.numbers(counts)
  assert numbers == {
    "language/en": 16 / 39,
    "language/zh": 23 / 39,
    "language/mixed": 1 / 3,
  }
  # Hosts add up.
  parts = spoken(ENGLISH, CHINESE) + spoken(BOTH, SIGNS, None)
  assert parts.tolist() == counts.tolist()
  assert languages.numbers(spoken(SIGNS, None)) == {}


def test_some_completions_of_a_round_are_read():
  many = spoken(*[ENGLISH] * 100)
  assert many[-2] == languages.READ
  assert spoken(*[ENGLISH, None] * 40)[-2] == languages.READ
  assert spoken(*[ENGLISH] * 5)[-2] == 5


def test_every_language_has_one_place():
  assert len({*language.LANGUAGES}) == len(language.LANGUAGES)
  assert {"en", "de", "zh", "ja", "ru", "ar", "hi", "ko", "th"} <= {
    *language.LANGUAGES
  }


def test_mixed_completions_are_shown_too():
  told = scores([1, 0, 0, 0, 0, 1, 0, 0, 0])
  shares = np.array([0.5, 1, 0.4, 1, 1, 0.3, 0.0, 1, 0.2])
  told.parts["language"] = shares
  rows = round_numbers.completion_rows(
    4, 2, EXAMPLES, WRITTEN, told, np.zeros((3, GROUP)), GROUP
  )
  assert [row["rewards"]["language"] for row in rows] == [
    *(0.5, 1.0, 1.0, 1.0, 0.0, 1.0),
    *(0.4, 0.3),  # Of those not shown yet, the first two.
  ]


def test_updates_of_a_round_are_averaged_and_maxima_are_not():
  updates = [
    {"loss": np.float32(1), "ratio/max": np.float32(5)},
    {"loss": np.float32(3), "ratio/max": np.float32(2)},
  ]
  assert round_numbers.merge(updates) == {"loss": 2.0, "ratio/max": 5.0}


def test_completions_are_shown_with_their_own_numbers():
  told = scores([1, 0, 0, 0, 0, 1, 0, 0, 0])
  told = told._replace(feedback=[f"said of {i}" for i in range(9)])
  advantages = np.arange(9.0).reshape(3, GROUP)
  rows = [
    *round_numbers.completion_rows(
      4, 2, EXAMPLES, WRITTEN, told, advantages, GROUP
    )
  ]
  assert [row["completion"] for row in rows] == [
    WRITTEN[i].text for i in (0, 1, 3, 4, 6, 7)
  ]
  assert rows[3] == {
    "step": 4,
    "round": 2,
    "task": "y",
    "prompt": "1 + 1 =",
    "completion": WRITTEN[4].text,
    "answer": "2",
    "rewards": {"accuracy": 0.0, "format": 1.0},
    "reward": 1.0,
    "advantage": 4.0,
    "feedback": "said of 4",
    "length": 5,
    "finish": "stop",
  }
  json.dumps(rows)
  known = [*WRITTEN[:3], None, None, None, *WRITTEN[6:]]
  assert [
    row["completion"]
    for row in round_numbers.completion_rows(
      4, 2, EXAMPLES, known, told, advantages, GROUP
    )
  ] == [WRITTEN[i].text for i in (0, 1, 6, 7)]


def test_tasks_are_told_apart_in_the_datasets_order():
  sets = evaluator.by_task(EXAMPLES, 4)
  assert [*sets] == ["x", "y"]
  assert [e.id for e in sets["y"]] == ["1", "1", "1", "2"]
  assert len(sets["x"]) == 3


def test_the_flops_of_a_round_are_those_of_its_tokens():
  """Twice the weights that a token meets, and its keys, pass by pass."""
  config = preset("tiny_qwen2")
  told = rollout([[2, 3]], [[FINISH_STOP] * 2])
  placements = pack_rollout(told, [0], widths=[16], rows=1)
  prompt = int(told.prompt_lengths[0])
  of = (flops.of_token(config), flops.of_logits(config), flops.of_pair(config))
  sampling = (prompt + 5) * of[0] + 5 * of[1]
  sampling += (5 * prompt + 3 + 6) * flops.of_pair(config, cached=True)
  head = prompt - 1  # Each completion begins with the prompt's last token.
  pairs = head * (head + 1) / 2 + 5 * head + 3 + 6
  one = (head + 5) * of[0] + 5 * of[1] + pairs * of[2]
  got = round_numbers.flops(config, told, [placements], 2)
  assert got == pytest.approx(sampling + 5 * one)
