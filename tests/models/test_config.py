"""Configs that do not fit together are refused; initial weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.models import transformer
from r1jax.models.config import ModelConfig, replace
from r1jax.models.presets import PRESETS, preset
from r1jax.models.weights import (
  is_matrix,
  is_router_bias,
  sizes,
  to_compute_dtype,
  weights,
)
from r1jax.parallel.mesh import AXIS_RULES, make_mesh


def test_the_tiny_model_has_between_0_4_and_1_million_weights():
  config = preset("tiny_deepseek")
  params = jax.eval_shape(
    lambda: transformer.init(transformer.Transformer(config), jax.random.key(0))
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert 400_000 < count < 1_000_000
  counted = sizes(config)
  biases = (config.num_moe_layers + 1) * config.experts.num_routed
  assert counted["total"] + counted["mtp"] + biases == count


def test_the_table_of_weights_is_what_init_makes(toy):
  table, params = (
    weights(toy.config),
    transformer.init(toy.model, jax.random.key(0)),
  )
  shapes = jax.tree.map(lambda leaf: leaf.shape, params)
  assert shapes == jax.tree.map(lambda weight: weight.shape, table)
  for weight in jax.tree.leaves(table):
    assert len(weight.axes) == len(weight.shape)
    assert {*weight.axes} <= {None, *AXIS_RULES}


def test_the_table_depends_neither_on_how_a_model_runs_nor_on_a_mesh(toy):
  table = weights(toy.config)
  how = dict(scan=True, remat="block", compute_dtype="bfloat16")
  with jax.set_mesh(make_mesh(fsdp=2, expert=2, tensor=2)):
    assert weights(replace(toy.config, **how)) == table
    other = replace(toy.config, **how, dense_width=28)
    assert weights(other) != table


def test_weights_begin_at_random_norms_at_one_and_biases_at_zero():
  config = preset("tiny_qwen2", init_scale=0.3)
  model = transformer.Transformer(config)
  begin = jax.jit(lambda seed: transformer.init(model, jax.random.key(seed)))
  first, same, other = begin(1), begin(1), begin(2)
  for path, leaf in jax.tree.leaves_with_path(first):
    if not is_matrix(path):
      assert np.all(leaf == (path[-1].key == "scale"))
      continue
    assert abs(leaf.std() - 0.3) < 0.02 and abs(leaf.mean()) < 0.02
  jax.tree.map(np.testing.assert_array_equal, first, same)
  gap = np.abs(first["embed"] - other["embed"]).max()
  layers = first["dense"]["feed_forward"]["down"]
  assert gap > 0.3 and np.abs(layers[0] - layers[1]).max() > 0.3


@pytest.mark.parametrize(
  "name",
  ["tiny_qwen2", pytest.param("tiny_deepseek", marks=pytest.mark.slow)],
)
def test_layers_use_weights_in_the_dtypes_of_to_compute_dtype(
  name, draw_params
):
  """Bit for bit in bfloat16, so that policy and sampler agree."""
  config = preset(name, compute_dtype="bfloat16", num_layers=2)
  params = draw_params(config, seed=1)
  cast = to_compute_dtype(params, config)
  dtypes = {str(x.dtype) for x in jax.tree.leaves(cast)}
  assert dtypes == {"float32", "bfloat16"}
  model = transformer.Transformer(config)
  packed = transformer.pack_rows(np.arange(12).reshape(2, 6))
  run = jax.jit(lambda p: transformer.forward(model, p, packed, mtp=True))
  jax.tree.map(np.testing.assert_array_equal, run(params), run(cast))
  # Rounding one more weight would show.
  low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  assert np.any(run(low).hidden != run(params).hidden)


PUBLISHED = {  # Parameters, without MTP blocks and balancing biases.
  "deepseek_v3": 671_026_404_352,
  "deepseek_v2_lite": 15_706_484_224,
  "qwen2.5-math-1.5b": 1_543_714_304,
  "qwen2.5-math-7b": 7_615_616_512,
  "qwen2.5-14b": 14_770_033_664,
  "qwen2.5-32b": 32_763_876_352,
  "llama-3.1-8b": 8_030_261_248,
  "llama-3.3-70b": 70_553_706_496,
  "r1-distill-qwen-1.5b": 1_777_088_000,
  "r1-distill-qwen-7b": 7_615_616_512,
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
  config = preset(name)
  params = jax.eval_shape(
    lambda: transformer.init(transformer.Transformer(config), jax.random.key(0))
  )
  params.pop("mtp", None)
  leaves, biases = jax.tree.leaves_with_path(params), 0
  for path, leaf in leaves:
    biases += leaf.size * is_router_bias(path)
  count = sum(leaf.size for _, leaf in leaves) - biases
  assert count == PUBLISHED.get(name, count) == sizes(config)["total"]
  if name == "deepseek_v3":
    assert biases == 14_848


def test_v3_caches_576_numbers_per_token_and_layer():
  assert preset("deepseek_v3").cache_size == 576


@pytest.mark.parametrize(
  "sizes, message",
  [
    (dict(attention=dict(rope_size=5)), "rope_size 5 is odd"),
    (dict(experts=dict(per_token=9)), "per_token 9"),
    (dict(experts=dict(per_token=0)), "per_token 0"),
    (dict(experts=dict(num_groups=3)), "num_groups 3"),
    (dict(experts=dict(groups_per_token=2)), "groups_per_token 2"),
    (dict(experts=dict(num_groups=4, per_token=3)), "per_token 3"),
    (dict(experts=dict(scores="relu")), "scores 'relu'"),
    (dict(experts=dict(num_dense_layers=9)), "num_dense_layers 9"),
    (dict(mtp_depth=-1), "mtp_depth -1"),
    (dict(moe_chunk=0), "moe_chunk 0"),
    (dict(heads=2), "no 'heads'"),
    (dict(experts=dict(heads=2)), "experts has no 'heads'"),
    (dict(width=dict(heads=2)), "no width whose fields"),
  ],
)
def test_impossible_sizes_are_refused(sizes, message):
  with pytest.raises(ValueError, match=message):
    preset("tiny_deepseek", **sizes)


def test_key_value_heads_divide_the_queries():
  with pytest.raises(ValueError, match="num_kv_heads 3"):
    preset("tiny_qwen2", attention=dict(num_kv_heads=3))


def test_an_unknown_model_is_refused_with_those_there_are():
  with pytest.raises(ValueError, match="'gpt'.*tiny_deepseek"):
    preset("gpt")


def test_configs_compare_and_hash_by_value():
  one, same = preset("tiny_deepseek"), preset("tiny_deepseek")
  assert isinstance(one, ModelConfig)
  assert one == same and hash(one) == hash(same)
  assert one != preset("tiny_deepseek", width=64)
  assert one.cache_size == one.attention.kv_rank + one.attention.rope_size


@pytest.mark.parametrize("dense", [0, 2])
def test_all_layers_may_be_of_one_kind(dense):
  config = preset(
    "tiny_deepseek", num_layers=2, experts=dict(num_dense_layers=dense)
  )
  tree = weights(config)
  assert ("dense" in tree, "moe" in tree) == (dense == 2, dense == 0)
  model = transformer.Transformer(config)
  params = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
  packed = transformer.pack_rows(np.zeros((1, 4), np.int32))
  made = jax.eval_shape(
    lambda p: transformer.forward(model, p, packed, mtp=True), params
  )
  assert made.expert_load.shape == (
    0 if dense else 3,
    config.experts.num_routed,
  )
