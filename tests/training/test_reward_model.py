"""Reward models: they learn what is preferred, and RL names them by path."""

import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from r1jax import config as configs
from r1jax import data, hf, rewards
from r1jax.data import templates
from r1jax.data import tokenizer as tokenizers
from r1jax.models import transformer
from r1jax.parallel.mesh import make_mesh
from r1jax.rewards.judges.judge import summary
from r1jax.runtime import metrics
from r1jax.training import grpo, reward_batch, reward_model, scorer
from r1jax.types import Completion, Example

pytestmark = pytest.mark.usefixtures("compiled_once")


def load_letters(*, size, labelled=False, first=0):
  """The answer with more of the letter a is the better one."""
  examples = []
  for i in range(first, first + size):
    good, bad = f"a{'ba'[i % 2]}a{i % 10}", f"b{'ab'[i % 2]}b{i % 7}"
    facts = dict(rejected=bad)
    if labelled:
      facts = dict(label=float(i % 3 > 0))
      good = good if i % 3 else bad
    examples.append(Example(f"{i} ?", good, "toy", str(i), facts))
  return examples


@pytest.fixture(scope="module")
def make(base):
  """`make(**changes)`: the config of a reward model on letters."""

  def make(**changes):
    c = ml_collections.ConfigDict(
      dict(
        loop="reward_model",
        seed=1,
        template="{question}",
        num_steps=12,
        metrics_every=2,
        checkpoint_every=4,
        cpu_devices=1,
        mesh=dict(data=1),
        model=dict(name="pretrained", path=base),
        tokenizer=dict(path=base),
        dataset=dict(name="preferred", size=40),
        batch_examples=8,
        rows=dict(widths=(16, 12), shard_rows=8),
        loss=dict(name="bradley_terry", margin=0.0),
        offload=(),
        optimizer=dict(learning_rate=0.03, warmup_steps=2),
        evaluation=dict(
          every=6,
          dataset=dict(name="preferred", size=20, first=100),
          examples=20,
        ),
      )
    )
    c.update_from_flattened_dict(changes)
    return c

  return make


@pytest.fixture(scope="module", autouse=True)
def letters():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(data.DATASETS, "preferred", load_letters)
    yield


@pytest.fixture(scope="module")
def trained(make, compiled_once, tmp_path_factory):
  """A run, and the same in two parts."""
  straight, parted = (tmp_path_factory.mktemp(n) for n in ("one", "two"))
  configs.check(make())
  whole = reward_model.train(make(), str(straight), sinks=())
  reward_model.train(make(num_steps=5), str(parted), sinks=())
  rest = reward_model.train(make(), str(parted), sinks=())
  return whole, rest, straight, parted


def test_it_learns_what_is_preferred(trained):
  _, _, folder, _ = trained
  results = json.loads((folder / "results.json").read_text())["preference"]
  assert (
    results["preference_accuracy"] > 0.9
    and results["preference_examples"] == 20
  )
  assert 0 <= results["preference_accuracy_stderr"] < 0.1
  assert results["preference_baseline"] == pytest.approx(
    0.5
  )  # They are equally long.
  rows = metrics.read(folder)
  losses = [row["loss/preference"] for row in rows if "loss/preference" in row]
  assert losses[0] == pytest.approx(np.log(2), rel=0.05)  # Of a head near 0.
  assert losses[-1] < 0.3
  evaluated = [r["step"] for r in rows if "eval/preference/accuracy" in r]
  assert evaluated == [6, 12]


def test_a_resumed_run_is_the_straight_run_bit_for_bit(trained):
  whole, rest, straight, parted = trained
  jax.tree.map(np.testing.assert_array_equal, rest, whole)
  rows = [
    [
      {k: v for k, v in row.items() if k != "time" and "perf/" not in k}
      for row in metrics.read(folder)
    ]
    for folder in (straight, parted)
  ]
  assert rows[0] == rows[1]


def test_every_number_of_a_row_is_in_the_table(trained):
  _, _, folder, _ = trained
  for row in metrics.read(folder):
    for name in row.keys() - {"step", "time"}:
      assert metrics.names.describe(name), name


def test_a_score_depends_on_its_own_text_alone(trained, base):
  """Not on padding, other rows, or the width of a row."""
  state, _, folder, _ = trained
  tokenizer = tokenizers.load(base)
  model = transformer.Transformer(hf.load(base)[0])
  texts = ["aba1", "b", "abcabc", "aa"]
  render = templates.find("{question}", tokenizer)
  expected = []
  for text in texts:
    ids = reward_batch.ids_of(
      templates.user_turn("7 ?"), text, render, tokenizer
    )
    assert ids[-1] in tokenizer.eos_ids
    hidden = transformer.forward(
      model,
      scorer.without_head(state.params),
      transformer.pack_rows(np.array([ids], np.int32)),
    ).hidden
    expected.append(float(hidden[0, -1] @ state.params["score"]))
  judge = scorer.load(
    str(folder / "model"), make_mesh(data=1), whole=False, dtype="float32"
  )
  scores = judge([("7 ?", text) for text in texts])
  np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
  assert judge([]) == []
  assert len(set(scores)) == len(texts)


def test_the_loss_is_that_of_its_equation(trained, make, base):
  """Of pairs in several microbatches of two widths."""
  state, *_ = trained
  tokenizer = tokenizers.load(base)
  model = transformer.Transformer(hf.load(base)[0])
  groups, left_out = reward_model.read_groups(
    load_letters(size=9),
    template="{question}",
    tokenizer=tokenizer,
    kind=reward_model.KINDS["bradley_terry"],
    longest=16,
    count=9,
    seed=0,
    step=0,
  )
  assert left_out == 0
  groups[0][0] = ([*groups[0][0][0][:-1], *[5] * 6, 2], 1.0)
  batches = reward_batch.make_batches(
    make_mesh(data=1), groups, widths=(16, 12), shard_rows=4
  )
  assert [batch.packed.tokens.shape[1] for batch in batches].count(16) == 1
  assert len(batches) == 1 + 4
  total, right = 0.0, 0.0
  for batch in batches:
    loss, numbers = reward_model.objective(
      model, state.params, batch, name="bradley_terry", margin=0.3
    )
    total, right = total + loss, right + numbers["preference/accuracy"]

  def score(ids):
    packed = transformer.pack_rows(np.array([ids], np.int32))
    last = jnp.array([len(ids) - 1])
    return float(scorer.scores_of(model, state.params, packed, last)[0])

  margins = np.array([score(a[0]) - score(b[0]) for a, b in groups])
  expected = np.mean(np.log1p(np.exp(-(margins - 0.3))))
  assert float(total) == pytest.approx(expected, rel=1e-4)
  assert float(right) == pytest.approx(np.mean(margins > 0))


@pytest.mark.slow
def test_safety_learns_labels_of_whole_responses(make, tmp_path):
  config = make(
    **{
      "num_steps": 30,
      "dataset.size": 200,
      "dataset.labelled": True,
      "evaluation.dataset.labelled": True,
    }
  )
  config.loss = dict(name="binary_cross_entropy")
  configs.check(config)
  reward_model.train(config, str(tmp_path), sinks=())
  results = json.loads((tmp_path / "results.json").read_text())["preference"]
  assert results["preference_accuracy"] > results["preference_baseline"] + 0.2
  settings, _ = scorer.read_head(str(tmp_path / "model"))
  assert settings == {"template": "{question}", "whole": True}


def test_a_thought_is_read_only_by_a_model_of_whole_responses():
  text = "<think> secret </think> the answer"
  assert reward_batch.read(text, whole=False) == "the answer"
  assert reward_batch.read(text, whole=True) == text
  assert reward_batch.read("plain", whole=False) == "plain"


@pytest.mark.slow
def test_rl_names_a_reward_model_by_its_path(trained, make_config, tmp_path):
  """Its numbers are those of calling the model by hand."""
  _, _, folder, _ = trained
  path = str(folder / "model")
  config = make_config(num_steps=2)
  config.rewards = dict(
    helpfulness=dict(weight=1.0, path=path, dtype="float32"), praise=0.0
  )
  configs.bind("rewards", config.rewards.to_dict(), rewards.score)
  seen, honest = [], grpo.set_up

  def spied(config):
    run = honest(config)
    make = run.make_sample

    class Spy(type(run)):
      def make_sample(self, *args):
        sample = make(*args)

        def sampled(*args, **kwargs):
          round = sample(*args, **kwargs)
          seen.append((round, round.scores()))
          return round._replace(scores=lambda: seen[-1][1])

        return sampled

    return Spy(*run)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(grpo, "set_up", spied)
    grpo.train(config, str(tmp_path), sinks=())
  (round, scores), *_ = seen
  judge = scorer.load(path, make_mesh(data=1), whole=False, dtype="float32")
  prompts = [example.prompt for example in round.examples]
  texts = [*zip(prompts, map(summary, round.completions), strict=True)]
  np.testing.assert_allclose(
    scores.parts["helpfulness"], judge(texts), rtol=1e-5
  )


def test_a_path_that_holds_no_reward_model_is_named(base, tmp_path, trained):
  _, _, folder, _ = trained
  mesh = make_mesh(data=1)
  spec = lambda path: dict(safety=dict(weight=1.0, path=str(path)))
  with pytest.raises(ValueError, match="holds no reward model, for it has no"):
    scorer.with_models(spec(base), mesh)
  with pytest.raises(ValueError, match="reads summaries .helpfulness., and is"):
    scorer.with_models(spec(folder / "model"), mesh)
  with pytest.raises(ValueError, match="path of a reward model is not set"):
    scorer.with_models(dict(math=spec("")), mesh)
  (tmp_path / scorer.SETTINGS).write_text("{")
  with pytest.raises(ValueError, match="is damaged .*; train it again"):
    scorer.with_models(spec(tmp_path), mesh)


def test_a_model_that_nothing_has_loaded_is_no_reward():
  rewards.check(helpfulness=dict(weight=1.0, path="anywhere"))
  with pytest.raises(ValueError, match="nothing has loaded the reward model"):
    rewards.score(
      [Example("a", "b")],
      [Completion("c")],
      helpfulness=dict(weight=1.0, path="anywhere"),
    )


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"loss.name": "hinge"}, "loss.name is 'hinge'; there is bradley_terry"),
    ({"rows.shard_rows": 3}, "shard_rows is 3; it must be even"),
  ],
)
def test_a_config_that_cannot_work_is_refused(make, changes, message):
  with pytest.raises(ValueError, match=message):
    configs.check(make(**changes))


def test_an_example_of_the_other_kind_is_named(make, tmp_path):
  config = make(**{"dataset.labelled": True, "evaluation.every": 0})
  with pytest.raises(ValueError, match="example '.*' has no 'rejected', which"):
    reward_model.train(config, str(tmp_path), sinks=())


def test_responses_that_do_not_fit_are_counted(make, tmp_path):
  config = make(**{"rows.widths": (4,), "evaluation.every": 0})
  with pytest.raises(ValueError, match="none of 8 examples fits rows of 4"):
    reward_model.train(config, str(tmp_path), sinks=())
