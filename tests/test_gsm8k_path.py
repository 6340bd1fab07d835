"""Real input: GSM8K's file and DeepSeek-R1's tokenizer through the loop."""

import json
import pathlib

import jax
import numpy as np
import packed as packed_rows
import pytest

from r1jax import config, data, rewards
from r1jax.data import chat, templates, tokenizer
from r1jax.data.packing import unpack
from r1jax.data.split import in_test
from r1jax.losses.aggregation import completion_mean
from r1jax.models import transformer
from r1jax.models.presets import PRESETS, preset
from r1jax.models.weights import logical_axes
from r1jax.parallel.mesh import make_mesh
from r1jax.rollouts.engine import Engine, make_engine
from r1jax.runtime import metrics
from r1jax.training import grpo, models
from r1jax.training.measures import completions
from r1jax.types import FINISH_LENGTH, FINISH_STOP, Rollout, within_lengths

ROOT = pathlib.Path(__file__).parent.parent
SHARED = ROOT / "../shared/data"
GSM8K = SHARED / "train/math_gsm8k_train.jsonl"
R1 = SHARED / "reference/deepseek_r1"
VOCABULARY = 129_280
EXPERIMENT = str(ROOT / "experiments/gsm8k_zero.py")
TOY = preset(
  "tiny_deepseek",
  width=32,
  num_layers=2,
  dense_width=32,
  experts=dict(width=8, num_routed=4),
)

needs_data = pytest.mark.skipif(
  not (GSM8K.exists() and R1.exists()), reason="there is no ../shared/data"
)


@pytest.fixture(scope="module")
def r1():
  return tokenizer.load(str(R1))


@pytest.fixture
def toy(monkeypatch, random_params):
  def fresh(mtp, /, *, preset_name, seed, vocab_size):
    sizes = preset(preset_name, vocab_size=vocab_size)
    params = random_params(sizes, seed)
    place = lambda shardings: jax.device_put(params, shardings)
    return models.Initial(sizes, params, place, logical_axes(sizes))

  monkeypatch.setitem(PRESETS, "toy", TOY)
  monkeypatch.setitem(models.MODELS, "fresh", fresh)


@pytest.fixture
def rollouts(monkeypatch):
  """Every rollout that an engine makes."""
  made, call = [], Engine.__call__

  def spy(self, *args, **kwargs):
    made.append(call(self, *args, **kwargs))
    return made[-1]

  monkeypatch.setattr(Engine, "__call__", spy)
  return made


def write_problems(path, extra=()):
  """Five problems to train on and two to test on, then `extra` lines."""
  texts = [f"{i} apples and {i + 1} pears: how many fruits?" for i in range(90)]
  chosen = [
    *[text for text in texts[:6] if not in_test("math/gsm8k", text)],
    *[text for text in texts if in_test("math/gsm8k", text)][:2],
  ]
  rows = [
    dict(question=text, answer=f"Add.\n#### {2 * int(text.split()[0]) + 1}")
    for text in chosen
  ]
  lines = [json.dumps(row) for row in (*rows, *extra)]
  path.write_text("\n".join(lines) + "\n")
  return path


def small(**overrides):
  """The experiment, as small as it can be."""
  settings = {
    "mesh.data": 1,
    "model.preset_name": "toy",
    "num_steps": 2,
    "sampling.max_tokens": 12,
    "sampling.num_slots": 8,
    "group_size": 2,
    "prompts_per_round": 2,
    "grader.num_workers": 1,
    "evaluation.problems": 2,
    "evaluation.samples": 2,
    "evaluation.problems_between": 2,
    "evaluation.samples_between": 2,
  }
  c = config.load(EXPERIMENT, settings | overrides)
  config.check(c)
  return c


def check_rollout(rollout, words):
  """What holds of every rollout, whatever was sampled."""
  *_, size = rollout.completions.shape
  np.testing.assert_array_equal(rollout.sampled_mask.sum(-1), rollout.lengths)
  for where in np.ndindex(rollout.lengths.shape):
    length, finish = rollout.lengths[where], rollout.finish[where]
    ids = rollout.completions[where][:length]
    assert 1 <= length <= size
    assert ids.max() < words.vocab_size  # Padding of the vocabulary.
    ended = np.isin(ids, words.eos_ids)
    assert not ended[:-1].any()
    assert ended[-1] == (finish == FINISH_STOP)
    assert finish == FINISH_STOP or length == size
    assert (rollout.logprobs[where][:length] < 0).all()
    assert (rollout.logprobs[where][length:] == 0).all()


@needs_data
def test_rewards_masks_and_lengths_of_texts_in_r1s_tokens(r1):
  examples = data.load("problems", path=str(GSM8K))[:2]
  right = "<think> Half of 48 is 24. </think> <answer>{}</answer>"
  texts = [[right.format(e.answer), "72, I think."] for e in examples]
  texts[1][1] = right.format(r"\boxed{10.5}")
  cut = (0, 1)  # This one had no time for EOS.
  ids = [[r1.encode(text) + [1] for text in group] for group in texts]
  ids[0][1].pop()
  lengths = np.array([[len(row) for row in group] for group in ids])
  asked = chat.encode_prompts(examples, "r1_zero", r1)
  rollout = Rollout(
    prompts=pad(asked, 200),
    prompt_lengths=np.array([len(row) for row in asked]),
    completions=np.stack([pad(group, 40) for group in ids]),
    lengths=lengths,
    finish=np.full((2, 2), FINISH_STOP),
    sampled_mask=within_lengths(lengths, 40),
    logprobs=np.full((2, 2, 40), -1.0, np.float32),
  )
  rollout.finish[cut] = FINISH_LENGTH

  flat, written = completions(rollout, examples, r1, 40)
  assert [c.text for c in written] == sum(texts, [])
  assert [c.num_tokens for c in written] == lengths.reshape(-1).tolist()
  assert [c.finish for c in written] == ["stop", "length", "stop", "stop"]
  scores = rewards.score(flat, written, accuracy=1.0, format=1.0)
  np.testing.assert_array_equal(scores.parts["accuracy"], [1, 0, 1, 0])
  np.testing.assert_array_equal(scores.parts["format"], [1, 0, 1, 1])

  packed = packed_rows.of_rollout(rollout, 512, rows=2)
  shape = rollout.completions.shape
  mask = rollout.sampled_mask
  targets = unpack(packed.targets, packed, shape)
  np.testing.assert_array_equal(targets, np.where(mask, rollout.completions, 0))
  assert (packed.origin >= 0).sum() == mask.sum() == lengths.sum()
  weights = completion_mean(lengths)[..., None] * mask
  assert weights.sum() == pytest.approx(1)
  assert ((weights > 0) == mask).all()
  eos = rollout.completions[0, 0, lengths[0, 0] - 1]
  assert eos == 1 and weights[0, 0, lengths[0, 0] - 1] > 0


def pad(rows, size):
  return np.array([row + [0] * (size - len(row)) for row in rows], np.int32)


@pytest.mark.slow
@needs_data
def test_padding_of_the_vocabulary_is_never_sampled(r1, toy):
  # Logits of padding, and of EOS, are far from those of other tokens, on both
  # sides: without the mask nearly every token would be padding.
  c = small()
  sizes, params = models.load(**c.model)
  assert sizes.vocab_size == VOCABULARY and r1.vocab_size == 128_815
  loud = np.ones(VOCABULARY, np.float32)
  loud[r1.vocab_size :] = 300
  loud[1] = 60
  params["unembed"] = params["unembed"] * loud
  examples = data.load("problems", path=str(GSM8K))[:3]
  engine = make_engine(
    transformer.Transformer(sizes),
    r1,
    make_mesh(**c.mesh),
    chat.shared_tokens("r1_zero", r1),
    **c.sampling,
  )
  asked = chat.encode_prompts(examples, "r1_zero", r1)
  rollout = engine(params, asked, 4, seed=0, round=0)
  check_rollout(rollout, r1)
  assert set(rollout.finish.flat) == {FINISH_STOP, FINISH_LENGTH}
  for row, length, example in zip(
    rollout.prompts, rollout.prompt_lengths, examples
  ):
    ids = row[:length].tolist()
    assert ids[0] == r1.bos_id
    assert r1.decode(ids[1:]) == templates.TEMPLATES["r1_zero"].fill(
      example.prompt
    )


@needs_data
@pytest.mark.soak
def test_a_round_with_r1s_vocabulary(r1, toy, rollouts, tmp_path, capsys):
  paths = {"dataset.path": str(GSM8K), "tokenizer.path": str(R1)}
  state = grpo.train(small(**paths), str(tmp_path))
  assert int(state.train.step) == 2
  assert state.train.params["embed"].shape == (VOCABULARY, TOY.width)
  assert "6,764 of 6,764 reference answers verify" in capsys.readouterr().out
  during, *evaluated = rollouts
  assert len(evaluated) == 2
  for rollout in rollouts:
    check_rollout(rollout, r1)
  row = next(row for row in metrics.read(tmp_path) if "round" in row)
  assert row["completions/mean_length"] == during.lengths.mean()
  assert row["data/tokens"] == during.sampled_mask.sum()
  assert row["sampling/logp_diff_max"] < 1e-3
  assert row["reward/accuracy/none_frac"] == 0


@pytest.mark.slow
def test_two_rounds_of_a_small_file(
  toy, rollouts, write_tokenizer, tmp_path, capsys
):
  bad = dict(problem="Which $b$?", answer=r"any integer with $\mho(a)=0$ and $")
  path = write_problems(tmp_path / "seven.jsonl", [bad])
  folder = write_tokenizer(tmp_path / "tokenizer")
  words = tokenizer.load(str(folder))
  c = small(
    **{
      "model.vocab_size": 512,
      "dataset.path": str(path),
      "tokenizer.path": str(folder),
      "num_steps": 4,
      "sampling.max_tokens": 60,
    }
  )
  state = grpo.train(c, str(tmp_path / "run"))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.train.params))
  said = capsys.readouterr().out
  count = len(path.read_text().splitlines())
  assert f"seven.jsonl:{count}: the answer" in said
  assert len(rollouts) == 4  # Evaluated at both ends.
  for rollout in rollouts:
    check_rollout(rollout, words)
  finish = np.concatenate([rollout.finish.reshape(-1) for rollout in rollouts])
  assert set(finish) == {FINISH_STOP, FINISH_LENGTH}
  rows = metrics.read(tmp_path / "run", "completions.jsonl")
  assert {row["finish"] for row in rows} <= {"stop", "length"}
  assert all(row["rewards"]["accuracy"] in (0, 1, None) for row in rows)


def test_what_is_missing_is_said_before_anything_runs(
  toy, write_tokenizer, tmp_path
):
  path = write_problems(tmp_path / "problems.jsonl")
  folder = write_tokenizer(tmp_path / "tokenizer")
  given = {
    "model.vocab_size": 512,
    "dataset.path": str(path),
    "tokenizer.path": str(folder),
  }
  for wrong, message in (
    ({"dataset.path": ""}, r"dataset.path is not set.*--config.dataset.path="),
    ({"tokenizer.path": ""}, r"tokenizer.path is not set.*--config.tokenizer"),
    ({"dataset.path": "/no/where.jsonl"}, "/no/where.jsonl: no such file"),
    ({"tokenizer.path": "/no/where"}, "/no/where holds no tokenizer"),
    ({"model.vocab_size": 300}, "ids, but the model only 300"),
    (
      {"sampling.prompt_tokens": 5},
      r"problems.jsonl:1: .* sampling.prompt_tokens is 5; set it to \d\d",
    ),
    ({"rows.widths": (64,)}, r"rows.widths, 64; it must be at least \d\d\d"),
  ):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
      grpo.train(small(**given | wrong), str(tmp_path / "run"))
    # The next command may use the same workdir.
    assert not (tmp_path / "run/config.json").exists()


@needs_data
@pytest.mark.slow
def test_all_of_gsm8k_fits_the_windows(r1):
  c = config.load(EXPERIMENT)
  shared = len(chat.shared_tokens(c.template, r1))
  for file in (GSM8K, SHARED / "eval/math_gsm8k_test.jsonl"):
    asked = chat.encode_prompts(
      data.load("problems", path=str(file)), c.template, r1
    )
    longest = max(map(len, asked))
    assert longest - shared <= c.sampling.prompt_tokens
    assert longest - 1 + c.sampling.max_tokens <= max(c.rows.widths)
    assert all(ids[0] != 1 and 1 not in ids for ids in asked)
