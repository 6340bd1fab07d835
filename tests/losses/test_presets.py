"""Presets have the values that the papers print, and all of them run."""

import ml_collections
import pytest

from r1jax.losses.advantages import ADVANTAGES
from r1jax.losses.aggregation import AGGREGATIONS
from r1jax.losses.grpo import check
from r1jax.losses.kl import KLS
from r1jax.losses.presets import PRESETS
from r1jax.losses.tables import choose

each = pytest.mark.parametrize("name", PRESETS)


@each
def test_every_section_fits_its_function(name):
  preset = PRESETS[name]
  check(**preset["loss"])
  choose("advantage", ADVANTAGES, preset["advantage"])
  choose("aggregation", AGGREGATIONS, preset["aggregation"])
  assert preset["kl_reward"]["name"] in KLS
  assert preset["kl_reward"]["coefficient"] >= 0.0
  assert preset["dynamic_sampling"]["rounds"] >= 0


@each
def test_a_section_replaces_that_of_a_config(name):
  """No key of the config's old section remains."""
  config = ml_collections.ConfigDict(PRESETS["r1"])
  config.loss = dict(PRESETS["r1"]["loss"], clip=dict(name="x", other=1))
  for key, value in PRESETS[name].items():
    config[key] = value
  assert config.loss.to_dict() == PRESETS[name]["loss"]
  check(**config.loss.to_dict())


def test_presets_do_not_share_sections():
  """Changing one preset in place does not change another."""
  PRESETS["grpo"]["loss"]["clip"]["epsilon"] = 0.3
  others = {PRESETS[name]["loss"]["clip"].get("epsilon") for name in PRESETS}
  PRESETS["grpo"]["loss"]["clip"]["epsilon"] = 0.2
  assert others == {0.3, 0.2, 10.0, None}


def test_r1_has_the_papers_values():
  r1 = PRESETS["r1"]
  assert r1["loss"]["clip"] == dict(name="symmetric", epsilon=10.0)
  assert r1["loss"]["kl"] == "k3"
  assert r1["loss"]["kl_coefficient"] == 0.001
  assert r1["group_size"] == 16
  assert r1["prompts_per_round"] * r1["group_size"] == 8192
  assert r1["prompts_per_round"] // r1["minibatches"] == 32
  assert r1["minibatches"] == 16
  assert r1["reference_every"] == 400
  assert r1["reference_every"] % r1["minibatches"] == 0


def test_each_preset_has_its_characteristic_values():
  loss = lambda name: PRESETS[name]["loss"]
  of = lambda name, section: PRESETS[name][section]["name"]
  assert loss("grpo")["kl_coefficient"] == 0.04
  assert loss("dapo")["clip"] == dict(name="asymmetric", low=0.2, high=0.28)
  assert of("dapo", "aggregation") == "token_mean"
  assert PRESETS["dapo"]["dynamic_sampling"]["rounds"] > 0
  assert of("dr_grpo", "advantage") == "group_mean"
  assert PRESETS["dr_grpo"]["aggregation"]["divisor"] == 3000
  assert loss("gspo")["ratio"] == "sequence"
  assert loss("gspo")["clip"] == dict(name="asymmetric", low=3e-4, high=4e-4)
  assert loss("cispo")["clip"]["name"] == "cispo"
  assert of("rloo", "advantage") == "leave_one_out"
  assert PRESETS["rloo"]["kl_reward"]["coefficient"] > 0
  for name in ("dapo", "dr_grpo", "gspo", "cispo", "rloo"):
    assert loss(name)["kl_coefficient"] == 0.0
