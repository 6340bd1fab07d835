"""A config fits its loop before anything starts."""

import dataclasses
import functools
import types

import ml_collections
import pytest

from r1jax import config


def loss(params, batch, *, clip_epsilon, kl_coefficient=0.001): ...


def sums(*, digits): ...


def words(*, letters=3): ...


def accuracy(*, strict): ...


@dataclasses.dataclass(frozen=True)
class Sizes:
  width: int
  depth: int

  def __post_init__(self):
    if self.width <= 0:
      raise ValueError(f"width is {self.width}")


def preset(name: str, **overrides) -> Sizes:
  return Sizes(**dict(width=8, depth=2) | overrides)


@pytest.fixture
def make(monkeypatch):
  module = types.SimpleNamespace(
    SECTIONS={
      "loss": loss,
      "model": preset,
      "dataset": {"sums": sums, "words": words},
      "rewards": {"accuracy": accuracy, "format": words},
    },
    FIELDS=("seed", "num_steps"),
  )
  monkeypatch.setattr(config, "loop", lambda name: module)

  def changed(**changes):
    plain = dict(
      loop="fake",
      seed=0,
      num_steps=3,
      loss=dict(clip_epsilon=0.2),
      model=dict(name="tiny"),
      dataset=dict(name="sums", digits=2),
      rewards=dict(accuracy=1.0, format=1.0),
    )
    plain |= changes
    kept = {k: v for k, v in plain.items() if v is not None}
    return ml_collections.ConfigDict(kept)

  return changed


def test_a_config_that_fits(make):
  config.check(make())
  config.check(make(rewards=dict(accuracy=dict(strict=True))))
  config.check(make(loss=dict(clip_epsilon=0.1, kl_coefficient=0.0)))
  config.check(make(model=dict(name="tiny", depth=9)))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(seeed=1), "unknown config key 'seeed'; did you mean 'seed'?"),
    (dict(losses=dict()), "unknown config key 'losses'; did you mean 'loss'?"),
    (dict(seed=None), "config key 'seed' is missing"),
    (dict(loss=None), "config key 'loss' is missing"),
    (dict(loop=None), "config key 'loop' is missing; set it to one"),
    (dict(seed=dict(x=1)), "'seed' is a section, but should be a value"),
    (dict(loss=3), "config key 'loss' should be a section"),
    (
      dict(loss=dict(clip_epsilom=0.2)),
      "unknown config key 'loss.clip_epsilom'; "
      "did you mean 'loss.clip_epsilon'?",
    ),
    (
      dict(loss=dict(kl_coefficient=0.2)),
      "config key 'loss.clip_epsilon' is missing",
    ),
    (
      dict(dataset=dict(name="sum", digits=2)),
      "unknown dataset.name 'sum'; did you mean 'sums'?",
    ),
    (dict(dataset=dict(name="sums")), "config key 'dataset.digits' is missing"),
    (
      dict(dataset=dict(name="words", digits=2)),
      "unknown config key 'dataset.digits'; there is dataset.letters",
    ),
    (
      dict(rewards=dict(acuracy=1.0)),
      "unknown config key 'rewards.acuracy'; did you mean 'rewards.accuracy'?",
    ),
    (
      dict(rewards=dict(accuracy=dict(strct=True))),
      "unknown config key 'rewards.accuracy.strct'",
    ),
    (
      dict(model=dict(name="tiny", widht=4)),
      "unknown config key 'model.widht'; did you mean 'model.width'?",
    ),
    (dict(model=dict(width=4)), "config key 'model.name' is missing"),
    (
      dict(model=dict(name="tiny", width=-4)),
      "config section 'model': width is -4",
    ),
  ],
  ids=str,
)
def test_what_does_not_fit_is_named(make, changes, message):
  with pytest.raises(ValueError) as error:
    config.check(make(**changes))
  assert str(error.value).startswith(message) or message in str(error.value)
  assert "\n" not in str(error.value)


def test_what_the_loop_passes_itself_may_be_bound():
  reader = functools.partial(loss, None, None)
  config.bind("loss", dict(clip_epsilon=0.2), reader)
  with pytest.raises(ValueError, match=r"'loss\.clip_epsilon' is missing"):
    config.bind("loss", {}, reader)


def test_rules_across_sections(make, monkeypatch):
  def check(c):
    raise ValueError("minibatches do not divide the batch")

  config.loop("").check = check
  with pytest.raises(ValueError, match="do not divide"):
    config.check(make())


def test_overrides_keep_their_keys_and_types(tmp_path):
  path = tmp_path / "c.py"
  path.write_text(
    "from ml_collections import ConfigDict\n"
    "def get_config(variant='plain'):\n"
    "  return ConfigDict(dict(a=1, b=dict(c=0.5), variant=variant))\n"
  )
  c = config.load(f"{path}:other", {"a": 2, "b.c": 1.5})
  assert c.to_dict() == dict(a=2, b=dict(c=1.5), variant="other")
  assert config.load(str(path)).variant == "plain"
  assert config.sweep(str(path)) == []
  with pytest.raises(ValueError, match=r"unknown config key 'b\.d'"):
    config.load(str(path), {"b.d": 1})
  with pytest.raises((AttributeError, KeyError)):
    c.d = 1  # Locked.
