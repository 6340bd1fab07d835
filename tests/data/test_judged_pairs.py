"""Pairs of the samples that a judge has told apart."""

import json

import pytest

from r1jax import data
from r1jax.data import judged_pairs


def row(prompt, sample, value, text="x"):
  messages = [
    {"role": "user", "content": prompt},
    {"role": "assistant", "content": f"{text}{sample}"},
  ]
  rewards = {} if value == "none" else {"preference": value}
  made_by = dict(prompt=prompt, sample=sample, rewards=rewards)
  return dict(
    id=f"{prompt}#{sample}", messages=messages, domain="d", provenance=made_by
  )


@pytest.fixture
def load(tmp_path):
  def load(kept, dropped=(), **options):
    for name, rows in ("kept", kept), ("dropped", dropped):
      folder = tmp_path / name
      folder.mkdir(exist_ok=True)
      (folder / "000000.jsonl").write_text(
        "".join(json.dumps(each) + "\n" for each in rows)
      )
    return judged_pairs.load(path=tmp_path, **dict(margin=1.0) | options)

  return load


def test_the_best_and_the_worst_sample_of_a_prompt_are_a_pair(load):
  dataset = load(
    [row("a", 0, -0.2), row("a", 1, 0.9), row("b", 0, 0.5), row("b", 1, -0.5)],
    [row("a", 2, -0.7), row("c", 0, 1.0), row("c", 1, None)],
  )
  (pair,) = dataset  # Of b, one is slightly better; of c, one was not graded.
  assert pair.prompt == "a" and pair.answer == "x1" and pair.domain == "d"
  assert pair.metadata["rejected"] == "x2"
  assert pair.metadata["messages"] == [dict(role="user", content="a")]
  assert data.content_hash(dataset)


def test_samples_without_a_judge_are_named(load):
  with pytest.raises(ValueError, match="000000.jsonl:2: the sample has no rew"):
    load([row("a", 0, 1.0), row("a", 1, "none")])


def test_samples_that_are_alike_make_no_pair(load, tmp_path):
  with pytest.raises(ValueError, match="of 1 prompts, none has samples whose"):
    load([row("a", 0, 0.1), row("a", 1, -0.1)])
  with pytest.raises(FileNotFoundError, match="holds no samples"):
    judged_pairs.load(path=tmp_path / "none", margin=0.0)
