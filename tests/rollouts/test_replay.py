"""Recorded experts come to the tokens that they read, and pin the choice."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import packed as rows_of
import pytest

from r1jax import ops
from r1jax.data.packing import unpack
from r1jax.models import transformer
from r1jax.models.moe import router_mismatch
from r1jax.models.presets import preset
from r1jax.parallel import sharding
from r1jax.parallel.mesh import make_mesh, reshape_mesh, row_shards
from r1jax.rollouts import replay, slots
from r1jax.rollouts.engine import make_engine
from r1jax.training.batch import make_batch, pack_prompts
from r1jax.types import Rollout, within_lengths

RNG = np.random.default_rng(1)
PREFIX = (7, 30, 7, 9)
SHAPE = P, G, MOST = 5, 3, 10
PROMPTS = [[*PREFIX, *RNG.integers(0, 37, n).tolist()] for n in (3, 1, 6, 4, 6)]
MESH = make_mesh(data=2)
TAIL = 3, 2  # L, k of random experts; the toy has 1 and 2.
SIZES = preset(
  "tiny_deepseek", num_layers=4, experts=dict(num_routed=256, per_token=2)
)
MESHES = (
  (dict(data=1), dict(data=1)),
  (dict(data=8), dict(fsdp=4, expert=2)),
  (dict(expert=8), dict(fsdp=2, expert=2, context=2)),
  (dict(data=2, fsdp=2, expert=2), dict(context=4, tensor=2)),
  (dict(data=2, tensor=4), dict(data=2, fsdp=2, context=2)),
  (dict(data=1, context=2, tensor=4), dict(expert=8)),
)


@pytest.fixture(scope="module")
def engine(toy):
  return make_engine(
    toy.model,
    toy.words,
    MESH,
    PREFIX,
    num_slots=4,
    decode_steps=3,
    prompt_tokens=6,
    max_tokens=MOST,
    temperature=1.0,
    record_experts=True,
  )


@pytest.fixture(scope="module")
def rollout(toy, engine):
  """Of the toy, its experts recorded."""
  return engine(toy.params, PROMPTS, G, seed=3, round=0)


@pytest.fixture(scope="module")
def ask(toy):
  """`ask(params, rollout, experts)`: log-probabilities [P, G, Tc], and the
  experts that were used [L, B, T, k]."""

  @jax.jit
  def jitted(params, packed, experts):
    made = transformer.forward(toy.model, params, packed, experts=experts)
    values, _ = ops.linear_logprobs(
      made.hidden, params["unembed"], packed.targets, vocab_size=37
    )
    return jnp.where(packed.origin >= 0, values, 0), made.experts

  def ask(params, rollout, experts):
    packed = packed_rows(rollout)
    rows = jax.tree.map(jnp.asarray, packed)
    values, used = jitted(params, rows, experts)
    return unpack(np.asarray(values), packed, SHAPE), np.asarray(used)

  return ask


def packed_rows(rollout):
  return rows_of.of_rollout(rollout, 32, rows=8)


def laid_out(rollout):
  """The recorded experts of `packed_rows` [L, B, T, k]; -1 in unused slots."""
  packed = packed_rows(rollout)
  rows = sharding.rows_to_device(MESH, packed)
  experts = np.asarray(replay.lay_out(rollout.experts, rows, MESH))
  experts = np.where(packed.positions >= 0, experts.astype(np.int32), -1)
  return np.moveaxis(experts, 1, -1)


def none_of(experts):
  return np.full_like(experts, -1)


def gap_of(own, recorded):
  """The share of layers [B, T] whose recorded experts are others."""
  return np.mean(router_mismatch(jnp.asarray(own), recorded), axis=0)


def perturbed(params, name, size):
  """The same weights but for one of the routers."""
  moe = params["moe"]["feed_forward"]
  weight = moe["router"][name]
  noise = np.random.default_rng(0).normal(0, size, weight.shape)
  router = moe["router"] | {name: np.float32(weight + noise)}
  layers = params["moe"] | {"feed_forward": moe | {"router": router}}
  return params | {"moe": layers}


def sampled(rng, num_slots, per_call):
  """A rollout whose experts are random, and the calls of `replay.write` of an
  engine that samples it: completions take any slot and begin in any call."""
  lengths = rng.integers(1, MOST + 1, (P, G)).astype(np.int32)
  prompt_lengths = rng.integers(1, 7, P).astype(np.int32)
  draw = lambda *shape: rng.integers(0, 256, (*shape, *TAIL)).astype(np.uint8)
  experts, of_prompts = draw(P, G, MOST), draw(P, 6)
  experts[~within_lengths(lengths, MOST)] = 0
  of_prompts[~within_lengths(prompt_lengths, 6)] = 0
  rollout = Rollout(
    prompts=rng.integers(0, 37, (P, 6)).astype(np.int32),
    prompt_lengths=prompt_lengths,
    completions=rng.integers(0, 37, (P, G, MOST)).astype(np.int32),
    lengths=lengths,
    finish=np.ones((P, G), np.int32),
    sampled_mask=within_lengths(lengths, MOST),
    logprobs=np.zeros((P, G, MOST), np.float32),
  )
  waiting, busy, calls = [*rng.permutation(P * G)], {}, []
  while waiting or busy:
    for slot in rng.permutation(num_slots).tolist():
      if slot not in busy and waiting and rng.random() < 0.7:
        busy[slot] = waiting.pop(), 0
    new, places = draw(num_slots, per_call), np.zeros((3, num_slots), np.int32)
    for slot, (i, done) in [*busy.items()]:
      more = min(per_call, lengths.flat[i] - done)
      new[slot, :more] = experts[i // G, i % G, done : done + more]
      places[:, slot] = i, done, more
      busy[slot] = i, done + more
      if done + more == lengths.flat[i]:
        del busy[slot]
    calls.append((new, places))
  return rollout, experts, of_prompts, calls


def on_devices(mesh, of_prompts, calls):
  """The record that an engine on a mesh makes of these calls."""
  shape = (P, G, MOST)
  record = replay.empty(replay.shapes(SIZES, mesh, shape, 6))
  put = functools.partial(sharding.rows_to_device, mesh)
  completions = record.completions
  for new, places in calls:
    completions = replay.write(completions, put(new), places)
  padding = -P % row_shards(mesh)
  rows = np.pad(of_prompts, ((0, padding), *[(0, 0)] * 3), constant_values=9)
  places = np.array([[*range(P)], [0] * P, [6] * P], np.int32)
  places = np.pad(places, ((0, 0), (0, padding)))
  prompts = replay.write(record.prompts, put(rows), places)
  return dataclasses.replace(record, completions=completions, prompts=prompts)


def of_slots(rollout, packed, experts, of_prompts):
  """The experts of packed slots [L, k, B, T], by a loop: a token of a
  completion is read in the slot before that of its target."""
  out = np.zeros((*packed.tokens.shape, *TAIL), experts.dtype)
  for row, origins in enumerate(packed.origin):
    prompt = None
    for t in reversed(range(len(origins))):
      if origins[t] >= 0:
        prompt, member, place = np.unravel_index(origins[t], (P, G, MOST))
        out[row, t] = experts[prompt, member, place]
      elif (place := packed.positions[row, t]) >= 0:
        assert packed.tokens[row, t] == rollout.prompts[prompt, place]
        out[row, t] = of_prompts[prompt, place]
  return np.moveaxis(out, (0, 1), (2, 3))


@pytest.mark.parametrize("sampler, trainer", MESHES, ids=str)
def test_experts_come_to_the_tokens_that_they_read(sampler, trainer):
  """From any slot to any row, bit for bit."""
  rng = np.random.default_rng(len(str(trainer)))
  rollout, experts, of_prompts, calls = sampled(rng, num_slots=8, per_call=3)
  trainer = make_mesh(**trainer)
  sampler = reshape_mesh(trainer, **sampler)
  record = on_devices(sampler, of_prompts, calls)
  for p in range(P):
    got = replay.of_prompt(record, p)
    np.testing.assert_array_equal(got[0], experts[p])
    np.testing.assert_array_equal(got[1], of_prompts[p])
  packed = rows_of.of_rollout(rollout, 32, rows=8, chosen=[2, 0, 1, 4, 3])
  expected = of_slots(rollout, packed, experts, of_prompts)
  assert (packed.positions < 0).any() and (packed.origin < 0).any()
  rows = sharding.rows_to_device(trainer, packed)
  got = replay.lay_out(record, rows, trainer)
  np.testing.assert_array_equal(got, expected)
  split = [trainer.shape[axis] for axis in ("data", "fsdp", "expert")]
  of_tokens = 32 // trainer.shape["context"]
  share = (*TAIL, 8 // int(np.prod(split)), of_tokens)
  assert got.sharding.shard_shape(got.shape) == share
  # And from a file, on another number of devices.
  alone = make_mesh(data=1)
  loaded = replay.to_device(replay.from_host(experts, of_prompts), alone)
  rows = sharding.rows_to_device(alone, packed)
  np.testing.assert_array_equal(replay.lay_out(loaded, rows, alone), expected)


def test_no_device_holds_the_experts_of_a_whole_token_and_all_tokens():
  """Not while they are recorded, and not while rows are laid out."""
  mesh = make_mesh(data=2, fsdp=2, expert=2)
  rng = np.random.default_rng(0)
  rollout, _, of_prompts, calls = sampled(rng, num_slots=8, per_call=3)
  record = on_devices(mesh, of_prompts, calls)
  for array in (record.completions, record.prompts):
    (size,) = {x.data.size for x in array.addressable_shards}
    assert size == array.size // 8
  new = sharding.rows_to_device(mesh, calls[0][0])
  packed = rows_of.of_rollout(rollout, 32, rows=8)
  rows = sharding.rows_to_device(mesh, packed)
  places = np.zeros((3, 8), np.int32)
  written = replay._write.lower(record.completions, new, places, mesh)
  most = record.completions.size // 8
  assert largest(written) == most
  out = replay._lay_out.lower(record, rows.origin, rows.positions, mesh)
  padded = record.completions.shape[0] * packed.tokens.size
  assert largest(out) == max(most, padded // 8)
  assert most < np.prod(TAIL) * packed.tokens.size // 2


def largest(lowered):
  """The size of the largest array of experts in a program on each device."""
  text = lowered.compile().as_text()
  found = re.findall(r"\bu8\[([\d,]+)\]", text)
  return max(np.prod([*map(int, dims.split(","))]) for dims in found)


def test_a_round_copies_no_experts_to_the_host(toy, engine, monkeypatch):
  """From the first token to the rows of an update."""
  kind, fetched = type(jnp.zeros(1)), []
  inner = kind._value  # Of an array on several devices, all of it.

  def watched(array):
    if array.dtype == np.uint8:
      fetched.append(array.shape)
    return inner.fget(array)

  monkeypatch.setattr(kind, "_value", property(watched))
  rollout = engine(toy.params, PROMPTS, G, seed=3, round=1)
  (placement,) = pack_prompts(
    rollout, range(P), MESH, widths=(32,), shard_rows=4
  )
  batch = make_batch(rollout, placement, MESH)
  assert batch.experts.dtype == np.uint8 and not fetched
  np.asarray(batch.experts)
  assert fetched == [batch.experts.shape]


@pytest.mark.parametrize("evaluation", [False, True])
def test_evaluation_records_nothing(toy, engine, monkeypatch, evaluation):
  class Began(Exception):
    pass

  def begin(*args, record_experts):
    raise Began(record_experts)

  monkeypatch.setattr(slots, "read_prefix", begin)
  with pytest.raises(Began, match=str(not evaluation)):
    engine(toy.params, PROMPTS, 1, seed=3, round=0, evaluation=evaluation)


def test_prompts_of_several_rollouts_are_joined_with_their_experts():
  mesh = make_mesh(data=4, tensor=2)
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.integers(0, 256, (*shape, *TAIL)).astype(np.uint8)
  made = [(draw(P, G, MOST), draw(P, width)) for width in (4, 6, 5)]
  records = [
    replay.to_device(replay.from_host(*experts), mesh) for experts in made
  ]
  kept = np.array([1, 7, 0, 14, 3])
  joined = replay.join(records, kept)
  assert joined.completions.sharding == records[0].prompts.sharding
  for i, p in enumerate(kept.tolist()):
    completions, prompts = replay.of_prompt(joined, i)
    experts, of_prompts = made[p // P]
    np.testing.assert_array_equal(completions, experts[p % P])
    width = of_prompts.shape[1]
    np.testing.assert_array_equal(prompts[:width], of_prompts[p % P])
    assert not np.any(prompts[width:])


def test_what_was_recorded_is_the_routers_choice(toy, rollout, ask):
  recorded = laid_out(rollout)
  values, own = ask(toy.params, rollout, none_of(recorded))
  np.testing.assert_array_equal(gap_of(own, recorded), 0)
  np.testing.assert_allclose(values, rollout.logprobs, atol=2e-5)
  again, used = ask(toy.params, rollout, recorded)
  np.testing.assert_allclose(again, values, atol=1e-6)
  np.testing.assert_array_equal(used, own)
  # All of them were used, by prompts and by completions.
  packed = packed_rows(rollout)
  for kind in (
    packed.origin >= 0,
    (packed.positions >= 0) & (packed.origin < 0),
  ):
    assert {*recorded[0, kind].flat} == {0, 1, 2, 3}


def test_replay_pins_the_choice_of_a_router_that_went_elsewhere(
  toy, rollout, ask
):
  """The bias has a say in the choice alone: with it repeated, nothing is left
  of the change."""
  changed = perturbed(toy.params, "bias", 0.2)
  recorded = laid_out(rollout)
  replayed, _ = ask(changed, rollout, recorded)
  np.testing.assert_allclose(replayed, rollout.logprobs, atol=2e-5)
  values, own = ask(changed, rollout, none_of(recorded))
  assert np.abs(values - rollout.logprobs).max() > 0.05
  gap = gap_of(own, recorded)
  used = packed_rows(rollout).positions >= 0
  assert 0.1 < gap[used].mean() < 1
  assert not gap[~used].any()


def test_gates_are_still_the_routers(toy, rollout, ask):
  recorded = laid_out(rollout)
  slightly = perturbed(toy.params, "weight", 0.05)
  replayed, used = ask(slightly, rollout, recorded)
  gap = np.abs(replayed - rollout.logprobs).max()
  assert 1e-3 < gap
  without, own = ask(slightly, rollout, none_of(recorded))
  assert (own != used).any()
  assert np.abs(without - rollout.logprobs).max() > 2 * gap


def test_a_model_without_experts_has_nothing_to_record(toy):
  dense = transformer.Transformer(preset("tiny_qwen2", vocab_size=40))
  with pytest.raises(ValueError, match="no experts"):
    make_engine(
      dense,
      toy.words,
      make_mesh(data=1),
      (),
      num_slots=2,
      decode_steps=2,
      prompt_tokens=4,
      max_tokens=4,
      temperature=1.0,
      record_experts=True,
    )
