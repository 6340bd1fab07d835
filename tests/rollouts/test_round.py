"""Groups that teach nothing are sampled again, so often and no oftener."""

import re
import types

import ml_collections
import numpy as np
import pytest

from r1jax import rewards
from r1jax.rewards import Scores
from r1jax.rollouts.engine import Engine
from r1jax.rollouts.grading import GroupGrader
from r1jax.rollouts.round import Round, make_sample, sample_until_it_teaches
from r1jax.training.inspection import explain_no_signal
from r1jax.types import Completion, Example, Rollout, within_lengths

P, G = 3, 2
MIXED, RIGHT, WRONG = (1.0, 0.0), (1.0, 1.0), (0.0, 0.0)


def sampler(*attempts, width=4, shaping=0.0):
  """`sample(i)`: groups of the rewards `attempts[i]`; and the calls so far."""
  calls = []

  def sample(attempt):
    calls.append(attempt)
    accuracy = np.array(attempts[attempt])
    size = width + attempt  # Later ones may be wider.
    mark = 100 * attempt + np.arange(P)
    rollout = Rollout(
      prompts=np.tile(mark[:, None], (1, size)),
      prompt_lengths=np.full(P, size),
      completions=np.tile(mark[:, None, None], (1, G, 3)),
      lengths=np.full((P, G), 3),
      finish=np.ones((P, G), int),
      sampled_mask=np.ones((P, G, 3), bool),
      logprobs=np.zeros((P, G, 3), np.float32),
    )
    total = accuracy.reshape(-1) + shaping * np.arange(P * G)
    scores = Scores(
      total,
      {"accuracy": accuracy.reshape(-1)},
      {"timeouts": 1, "crashes": 0},
      [f"of {m}" for m in mark for _ in range(G)],
    )
    flat = np.repeat(mark, G)
    return Round(
      rollout,
      [Example(str(m), "") for m in flat],
      [Completion(str(m)) for m in flat],
      lambda: scores,
    )

  return sample, calls


def test_without_rounds_what_was_sampled_is_taken_as_it_is():
  sample, calls = sampler([RIGHT, WRONG, MIXED])
  sampled = sample_until_it_teaches(sample, rounds=0)
  assert calls == [0] and sampled.teaching is None
  assert sampled.rollout.prompts[:, 0].tolist() == [0, 1, 2]


def test_a_full_batch_ends_the_search():
  sample, calls = sampler(3 * [MIXED], 3 * [MIXED])
  assert sample_until_it_teaches(sample, rounds=5).batches == 1 and calls == [0]


def test_groups_that_teach_nothing_are_replaced_in_order():
  sample, calls = sampler(
    [RIGHT, MIXED, WRONG], [WRONG, MIXED, RIGHT], [MIXED, MIXED, RIGHT]
  )
  told = []
  sampled = sample_until_it_teaches(sample, rounds=5, say=told.append)
  assert calls == [0, 1, 2] and not told
  marks = [1, 101, 200]
  assert sampled.rollout.prompts[:, 0].tolist() == marks
  assert sampled.rollout.completions[:, 1, 2].tolist() == marks
  assert [e.prompt for e in sampled.examples] == [
    str(m) for m in marks for _ in range(G)
  ]
  assert [c.text for c in sampled.completions[::G]] == [str(m) for m in marks]
  scores = sampled.scores()
  np.testing.assert_array_equal(scores.total, 3 * MIXED)
  assert scores.counts["timeouts"] == 3
  assert scores.feedback == [f"of {m}" for m in marks for _ in range(G)]
  assert (sampled.teaching, sampled.batches) == (3, 3)
  assert sampled.discarded == 6 * G
  assert sampled.rollout.prompts.shape == (P, 6)


def test_at_the_bound_it_goes_on_with_what_there_is_and_says_so():
  sample, calls = sampler([RIGHT, MIXED, WRONG], 3 * [RIGHT])
  told = []
  sampled = sample_until_it_teaches(sample, rounds=1, say=told.append)
  assert calls == [0, 1] and sampled.teaching == 1
  assert sampled.rollout.prompts[:, 0].tolist() == [1, 0, 2]
  assert told == [
    "1 of 3 groups teach something after 2 samplings; going on with them "
    "(dynamic_sampling.rounds)"
  ]


def test_groups_are_graded_as_soon_as_they_are_complete(monkeypatch):
  """In whatever order completions end; grades come back in their places."""
  rewarded, P = [], 3
  size = lambda example, completion: len(completion.text)
  explain = lambda example, completion: (
    len(completion.text),
    "é" * 399 if completion.text == "xxx" else example.prompt,
  )
  monkeypatch.setitem(
    rewards.REWARDS, "size", rewards.Reward(size, explain=explain)
  )
  submit = rewards.submit
  monkeypatch.setattr(
    rewards,
    "submit",
    lambda examples, *a, **k: (
      rewarded.append(examples[0].prompt) or submit(examples, *a, **k)
    ),
  )
  lengths = np.array([[1, 2], [3, 1], [2, 2]])
  rollout = Rollout(
    prompts=np.zeros((P, 1), int),
    prompt_lengths=np.ones(P, int),
    completions=np.zeros((P, G, 3), int),
    lengths=lengths,
    finish=np.ones((P, G), int),
    sampled_mask=within_lengths(lengths, 3),
    logprobs=np.zeros((P, G, 3), np.float32),
  )
  examples = [Example(str(p), "") for p in range(P)]
  words = types.SimpleNamespace(
    vocab_size=9,
    eos_ids=(1,),
    prefix_ids=(),
    encode=list,
    decode=lambda ids: "x" * len(ids),
  )
  alone = np.zeros(P, int)
  grading = GroupGrader(examples, alone, G, words, 3, None, dict(size=1.0))
  for ps, gs in (([1, 0], [0, 1]), ([2, 1, 2], [0, 1, 1]), ([0], [0])):
    grading.take(rollout, (np.array(ps), np.array(gs)))
  assert rewarded == ["1", "2", "0"]
  shared = GroupGrader(
    examples, np.array([0, 1, 0]), G, words, 3, None, dict(size=1.0)
  )
  _, own = shared.texts(rollout)
  assert [c is None for c in own] == [False] * 2 + [True] * 2 + [False] * 2
  flat, written = grading.texts(rollout, read_all=True)
  assert [e.prompt for e in flat] == ["0", "0", "1", "1", "2", "2"]
  assert [c.num_tokens for c in written] == lengths.reshape(-1).tolist()
  scores = grading.scores()
  np.testing.assert_array_equal(scores.total, lengths.reshape(-1))
  assert scores.feedback == ["0", "0", "é" * 200, "1", "2", "2"]


def test_what_the_template_wrote_is_put_back_before_it_is_graded():
  words = types.SimpleNamespace(
    vocab_size=9,
    eos_ids=(1,),
    prefix_ids=(),
    encode=list,
    decode=lambda ids: "7</think>\n\\boxed{7}",
  )
  lengths = np.array([[3]])
  rollout = Rollout(
    prompts=np.zeros((1, 1), int),
    prompt_lengths=np.ones(1, int),
    completions=np.zeros((1, 1, 3), int),
    lengths=lengths,
    finish=np.ones((1, 1), int),
    sampled_mask=within_lengths(lengths, 3),
    logprobs=np.zeros((1, 1, 3), np.float32),
  )
  graded = dict(accuracy=1.0, tags=1.0)
  for prefill, tags in (("<think>\n", 0.5), ("", 0.25)):
    grading = GroupGrader(
      [Example("", "7", "math")],
      np.zeros(1, int),
      1,
      words,
      3,
      None,
      graded,
      prefill=prefill,
    )
    grading.take(rollout, (np.array([0]), np.array([0])))
    _, (written,) = grading.texts(rollout)
    assert written.text == prefill + "7</think>\n\\boxed{7}"
    assert written.prefill == prefill and written.num_tokens == 3
    scores = grading.scores()
    assert scores.parts["accuracy"] == 1.0 and scores.parts["tags"] == tags


@pytest.mark.parametrize("shaping", [0.0, 0.1])
def test_shaping_does_not_make_a_group_teach(shaping):
  sample, _ = sampler([RIGHT, RIGHT, WRONG], 3 * [RIGHT], shaping=shaping)
  assert sample_until_it_teaches(sample, rounds=1).teaching == 0


@pytest.mark.parametrize(
  "values, message",
  [
    ([0.0, 0.0], r"sampled 4 times .*\(mean 0\); use problems that"),
    ([1.0, np.nan], r"\(mean 1\); use problems that the model solves sometim"),
    (
      [np.nan, np.nan],
      "nothing could be graded; check the errors of the grader",
    ),
  ],
)
def test_rounds_that_teach_nothing_are_explained(values, message):
  config = ml_collections.ConfigDict(dict(dynamic_sampling=dict(rounds=3)))
  scores = Scores(np.array([9.0, 9.0]), {"accuracy": np.array(values)}, {})
  assert re.search(message, explain_no_signal(scores, config))


def test_a_round_asks_its_own_problems_each_beginning_with_bos():
  class Asked(Exception):
    pass

  class Recorder(Engine):
    def __init__(self):
      pass

    def hosts(self, count):
      return np.zeros(count, int)

    def __call__(self, params, prompts, *args, **kwargs):
      raise Asked(prompts)

  words = types.SimpleNamespace(
    vocab_size=99,
    eos_ids=(2,),
    prefix_ids=(1,),
    encode=lambda text: [*map(ord, text)],
    decode=lambda ids: "",
  )
  dataset = [Example(chr(97 + i), "") for i in range(2 * P)]
  sample = make_sample(
    Recorder(),
    dataset,
    words,
    None,
    rewards=dict(random=1.0),
    template="plain",
    seed=0,
    prompts_per_round=P,
    group_size=G,
    rounds=1,
  )

  def asked(round, attempt):
    with pytest.raises(Asked) as raised:
      sample({}, round, 3, attempt)
    return raised.value.args[0]

  first, second, again = asked(0, 0), asked(1, 0), asked(0, 1)
  for prompts in (first, second, again):
    assert len(prompts) == P
    assert all(ids[0] == 1 and ids[2:] == [10] for ids in prompts)
  seen = sorted(chr(ids[1]) for ids in first + second)
  assert seen == [example.prompt for example in dataset]
  assert again != first
