"""Samples for SFT: every one is written once, with what made it."""

import contextlib
import json
import os
import pathlib

import ml_collections
import numpy as np
import pytest

from r1jax import config as configs
from r1jax import data, rewards
from r1jax.data import decontamination, jsonl, shard_writer
from r1jax.rewards import Scores
from r1jax.training import generate, samples
from r1jax.training.samples import Sample
from r1jax.types import Completion, Example

NOTHING = decontamination.index_of([])


@pytest.fixture
def config(base, toy_task, monkeypatch):
  """12 problems x 3 samples of the toy, in shards of 5 problems."""
  # Graders need no processes of their own here.
  no_pool = lambda **_: contextlib.nullcontext()
  monkeypatch.setattr(generate, "GraderPool", no_pool)
  c = ml_collections.ConfigDict()
  c.loop = "generate"
  c.seed = 3
  c.cpu_devices = 1
  c.template = "plain"
  c.mesh = dict(data=1)
  c.model = dict(name="pretrained", path=base)
  c.tokenizer = dict(path=base)
  c.sampling = dict(
    num_slots=8,
    decode_steps=4,
    prompt_tokens=8,
    max_tokens=8,
    temperature=1.0,
  )
  c.teacher = c.rewriter = None
  c.dataset = dict(name="letters", size=12)
  c.decontamination = dict(against={}, size=10)
  c.samples = 3
  c.prompts_per_shard = 5
  c.format = "jsonl"
  c.rewards = dict(praise=1.0)
  c.keep = dict(praise=0.01)
  c.grader = dict(
    num_workers=1, timeout=60.0, preload=("r1jax.rewards",), canaries=()
  )
  return c


def run(config, workdir):
  configs.check(config)
  return generate.train(config, str(workdir), sinks=())


def files(workdir):
  """The bytes of all shards, by name."""
  return {
    f"{folder}/{path.name}": path.read_bytes()
    for folder in (shard_writer.KEPT, shard_writer.DROPPED)
    for path in sorted((workdir / folder).iterdir())
  }


def rows(workdir, *folders):
  return [
    row
    for folder in folders or (shard_writer.KEPT, shard_writer.DROPPED)
    for path in sorted((workdir / folder).glob("*.jsonl"))
    for _, row in jsonl.read(path)
  ]


@pytest.mark.usefixtures("compiled_once")
def test_every_sample_is_written_once_and_a_stopped_run_writes_the_same(
  config, tmp_path, monkeypatch
):
  straight = run(config, tmp_path / "straight")
  written = rows(tmp_path / "straight")
  ids = [row["id"] for row in written]
  assert len({*ids}) == len(ids) == straight["samples"] == 36
  assert (
    straight["kept"] == len(rows(tmp_path / "straight", shard_writer.KEPT)) > 0
  )
  assert {row["provenance"]["prompt"] for row in written} == {
    *map(str, range(12))
  }
  for row in rows(tmp_path / "straight", shard_writer.KEPT):
    assert all(row["provenance"]["filters"].values())
    assert row["provenance"]["rewards"]["praise"] >= 0.01
    user, assistant = row["messages"]
    assert user["role"] == "user" and user["content"].endswith("?")
    assert assistant["role"] == "assistant" and "a" in assistant["content"]
  for row in rows(tmp_path / "straight", shard_writer.DROPPED):
    assert not all(row["provenance"]["filters"].values())

  # The process dies before each of the six files has its name.
  replace, calls = os.replace, 0

  def deadly(source, target):
    nonlocal calls
    if pathlib.Path(target).parent.name in (
      shard_writer.KEPT,
      shard_writer.DROPPED,
    ):
      calls += 1
      if calls in deaths:
        raise MemoryError("killed")
    replace(source, target)

  monkeypatch.setattr(os, "replace", deadly)
  deaths = {1, 3, 5, 7, 8, 11}
  for _ in deaths:
    with pytest.raises(MemoryError):
      run(config, tmp_path / "stopped")
  assert run(config, tmp_path / "stopped") == straight
  assert files(tmp_path / "stopped") == files(tmp_path / "straight")
  again = files(tmp_path / "stopped")
  assert run(config, tmp_path / "stopped") == straight  # Nothing is left to do.
  assert files(tmp_path / "stopped") == again

  # Another seed is another run; so is another config in the same workdir.
  config.seed = 4
  with pytest.raises(ValueError, match="another config: seed was 3, is 4"):
    run(config, tmp_path / "straight")


def sample(text="<think>a</think>b", *, number=0, finish="stop", position=0):
  example = Example("How many letters?", "b", "toy/x", f"toy:{position}")
  completion = Completion(text, num_tokens=4, finish=finish)
  return Sample(example, position, number, completion, {}, {})


def judged(drawn, keep, index=NOTHING, applies={}, **parts):
  parts = {name: np.array(part, float) for name, part in parts.items()}
  applies = {name: np.array(part) for name, part in applies.items()}
  total = np.zeros(len(drawn))
  scores = Scores(total, parts, {}, applies=applies)
  return samples.judged(drawn, scores, keep=keep, index=index)


def test_a_sample_is_kept_if_it_reaches_every_minimum():
  drawn = [sample(number=i) for i in range(4)]
  graded = judged(
    drawn,
    dict(accuracy=1.0, language=0.9),
    accuracy=[1, 1, 0, np.nan],
    language=[1, 0.5, 1, 1],
    length=[0, 0, 0, 0],
  )
  assert [each.kept for each in graded] == [True, False, False, False]
  assert [each.filters["accuracy"] for each in graded] == [
    True,
    True,
    False,
    False,
  ]
  assert [each.filters["language"] for each in graded] == [
    True,
    False,
    True,
    True,
  ]
  assert graded[3].rewards["accuracy"] is None
  assert "length" not in graded[0].filters


def test_a_reward_that_does_not_apply_asks_nothing():
  graded = judged(
    [sample()],
    dict(accuracy=1.0),
    accuracy=[np.nan],
    applies=dict(accuracy=[False]),
  )
  assert graded[0].kept and "accuracy" not in graded[0].rewards


def test_what_was_cut_or_stands_in_an_evaluation_set_is_dropped():
  question = "one two three four five six seven eight nine ten"
  cut, leaked = judged(
    [sample(finish="length"), sample(f"<think>{question}</think>b")],
    {},
    decontamination.index_of([question]),
  )
  assert not cut.filters["ended"] and cut.filters["uncontaminated"]
  assert leaked.filters["ended"] and not leaked.filters["uncontaminated"]


def test_of_equal_samples_of_a_problem_the_first_that_is_good_is_kept():
  drawn = [
    sample("A", number=0, finish="length"),
    sample("A", number=1),
    sample(" a\n", number=2),
    sample("A", number=0, position=1),
  ]
  graded = samples.distinct(judged(drawn, {}))
  assert [each.kept for each in graded] == [False, True, False, True]
  assert [each.filters["distinct"] for each in graded] == [
    True,
    True,
    False,
    True,
  ]


def test_a_row_is_json_that_sft_reads():
  (graded,) = judged([sample("<think>a\ud800</think>b ")], {}, praise=[0.5])
  row = samples.row(graded._replace(original="b"), dict(model="m", step=7))
  assert json.loads(json.dumps(row, ensure_ascii=False).encode()) == {
    "id": "0/toy:0#0",
    "messages": [
      {"role": "user", "content": "How many letters?"},
      {"role": "assistant", "content": "<think>a?</think>b"},
    ],
    "domain": "toy/x",
    "answer": "b",
    "provenance": {
      "model": "m",
      "step": 7,
      "prompt": "toy:0",
      "sample": 0,
      "rewards": {"praise": 0.5},
      "filters": {"ended": True, "uncontaminated": True},
      "tokens": 4,
      "finish": "stop",
      "original": "b",
    },
  }


def test_a_summary_adds_shards_up():
  rows = [
    samples.numbers(judged([sample(finish=f) for f in finish], {}))
    for finish in (["stop", "length"], ["stop", "stop", "stop"])
  ]
  assert samples.summarise(rows) == dict(
    samples=5,
    kept=4,
    dropped=dict(ended=1),
    domains=dict(toy=dict(samples=5, kept=4, mean_tokens=4.0)),
  )


def test_prompts_that_repeat_or_stand_in_an_evaluation_set_are_left_out(
  config, tmp_path, monkeypatch
):
  words = "one two three four five six seven eight nine ten"
  load = lambda *, prompts: [
    Example(prompt, "", "", str(i)) for i, prompt in enumerate(prompts)
  ]
  monkeypatch.setitem(data.DATASETS, "given", load)
  config.dataset = dict(name="given", prompts=(words, "a 1 ?", "A  1 ?"))
  against = dict(test=dict(name="given", prompts=(words,)))
  config.decontamination.against = against
  drawn = []

  def draw(examples, number):
    drawn.extend(examples)
    texts = [Completion("a", num_tokens=1) for _ in range(3 * len(examples))]
    zeros = np.ones(len(texts))
    return texts, Scores(zeros, dict(praise=zeros), {})

  monkeypatch.setattr(generate, "make_draw", lambda *_: draw)
  summary = run(config, tmp_path / "w")
  assert [example.prompt for example in drawn] == ["a 1 ?"]
  assert summary["repeated_prompts"] == summary["contaminated_prompts"] == 1
  assert summary["kept"] == 1 and summary["dropped"]["distinct"] == 2

  config.dataset.prompts = (words,)
  with pytest.raises(ValueError, match="none of the 1 prompts is left"):
    run(config, tmp_path / "other")


def test_a_problem_that_does_not_fit_is_named_before_anything_is_sampled(
  config, tmp_path
):
  path = tmp_path / "p.jsonl"
  row = json.dumps(dict(question="a b c d e f g h a b c d", answer="1"))
  path.write_text('{"question": "a ?", "answer": "1"}\n' + row)
  config.dataset = dict(name="problems", path=str(path))
  with pytest.raises(ValueError, match="^p.jsonl:2: a prompt of .* tokens"):
    run(config, tmp_path / "w")
  path.write_text("{}\n[")
  with pytest.raises(ValueError, match=f"^{path}:1: "):
    run(config, tmp_path / "w")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"samples": 0}, "samples is 0; it must be at least 1"),
    ({"format": "csv"}, "format is 'csv'; there is jsonl, parquet"),
    ({"model": None}, "model is None, and so is teacher"),
    ({"keep": {"prase": 1.0}}, "unknown reward in keep 'prase'; did you mean"),
    (
      {"decontamination": {"against": {"t": {"name": "lettres", "size": 1}}}},
      "decontamination.against.t.name",
    ),
    (
      {"teacher": {"base_url": "http://x", "model": "m"}},
      "teacher is set, and so is mesh",
    ),
    ({"teacher": {"model": "m"}}, "'teacher.base_url' is missing"),
    ({"rewriter": {"base_url": "http://x", "modell": "m"}}, "rewriter.modell"),
  ],
)
def test_a_config_that_contradicts_itself_is_refused(config, changes, message):
  plain = config.to_dict()
  with pytest.raises(ValueError, match=message):
    configs.check(ml_collections.ConfigDict(plain | changes))


def test_what_a_sample_needs_is_graded_by_rewards_of_its_domain():
  spec = dict(math=dict(accuracy=1.0), toy=dict(thought=1.0))
  examples = [Example("1 + 1", "2", "math"), Example("Hi", "", "toy")]
  texts = ["<think>1+1</think>\\boxed{2}", "<think>a</think>b"]
  drawn = [
    sample(text)._replace(example=example)
    for example, text in zip(examples, texts)
  ]
  scores = rewards.score(examples, texts, **spec)
  keep = dict(accuracy=1.0, thought=1.0)
  graded = samples.judged(drawn, scores, keep=keep, index=NOTHING)
  assert all(each.kept for each in graded)
  assert [[*each.rewards] for each in graded] == [["accuracy"], ["thought"]]
