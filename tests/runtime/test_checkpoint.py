"""What was saved comes back bit for bit, whenever the process dies."""

import math
import os
import pathlib
import random
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from trees import assert_same

from r1jax.runtime import checkpoint, workdir
from r1jax.types import RLState, TrainState

ROOT = pathlib.Path(__file__).parents[2]


def make_state(seed, *, width=8, reference=True):
  keys = jax.random.split(jax.random.key(seed), 3)
  params = {
    "blocks": {
      "w": jax.random.normal(keys[0], (3, width, width)),
      "bias": jax.random.normal(keys[1], (3, width)).astype(jnp.bfloat16),
    },
    "embed": jax.random.normal(keys[2], (16, width)),
  }
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.masked(
      optax.adamw(1e-3),
      {"blocks": {"w": True, "bias": False}, "embed": True},
    ),
  )
  optimizer_state = optimizer.init(params)
  _, optimizer_state = optimizer.update(params, optimizer_state, params)
  return RLState(
    train=TrainState(
      step=jnp.int32(seed),
      params=params,
      optimizer_state=optimizer_state,
      skipped=jnp.int32(0),
    ),
    reference=params if reference else None,
    reference_step=jnp.int32(seed),
  )


@pytest.mark.parametrize("reference", [True, False])
def test_a_state_comes_back_bit_for_bit(tmp_path, reference):
  state = make_state(7, reference=reference)
  checkpoint.save(tmp_path, 7, state)
  like = make_state(0, reference=reference)
  assert_same(checkpoint.restore(tmp_path, like), state)
  shapes = jax.eval_shape(lambda: make_state(0, reference=reference))
  assert_same(checkpoint.restore(tmp_path, shapes), state)


def test_odd_bits_survive(tmp_path):
  tree = {
    "nan": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
    "int": np.array([-(2**31), 2**31 - 1], np.int32),
    "bool": np.array([True, False]),
    "half": np.array([1.5, -0.0], ml_dtypes.bfloat16),
    "empty": np.zeros((0, 3), np.float32),
    "empty on a device": jnp.zeros((0, 3), jnp.bfloat16),
    "none": None,
    "tuple": (np.uint8(255), [np.float32(3.25)]),
  }
  checkpoint.save(tmp_path, 0, tree)
  assert_same(checkpoint.restore(tmp_path, tree), tree)


def test_nothing_is_none(tmp_path):
  assert checkpoint.restore(tmp_path, make_state(0)) is None
  assert checkpoint.restore(tmp_path / "nowhere", make_state(0)) is None
  assert checkpoint.latest_step(tmp_path / "nowhere") is None
  assert not (tmp_path / "nowhere").exists()


def test_the_newest_wins_and_old_ones_go(tmp_path):
  for step in (9, 10, 11):  # Not in the order of their names.
    checkpoint.save(tmp_path, step, make_state(step))
    assert int(checkpoint.restore(tmp_path, make_state(0)).train.step) == step
  assert checkpoint.latest_step(tmp_path) == 11
  folders = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
  assert folders == ["10", "11"]


def save_scored(workdir, scores):
  """Checkpoints of these steps, each evaluated once it was saved."""
  for step, score in scores:
    checkpoint.save(workdir, step, {"x": np.ones(3)})
    if score is not None:
      checkpoint.write_score(workdir, step, score)


def kept(workdir):
  return sorted(p.name for p in (workdir / "checkpoints").glob("[0-9]*"))


def test_the_best_stays(tmp_path):
  """Of those that are there, and of those whose score is a number."""
  checkpoint.write_score(tmp_path, 0, 1.0)  # The base has no checkpoint.
  scores = (1, math.nan), (2, 0.7), (3, None), (4, 0.5), (5, 0.1)
  save_scored(tmp_path, scores)
  assert checkpoint.best_step(tmp_path) == 2
  assert kept(tmp_path) == ["2", "4", "5"]
  save_scored(tmp_path, [(6, 0.9), (7, None), (8, 0.3)])
  assert checkpoint.best_step(tmp_path) == 6
  assert kept(tmp_path) == ["6", "7", "8"]


def test_a_score_may_come_long_after_its_checkpoint(tmp_path):
  """Also from another process, for a step that was saved before."""
  save_scored(tmp_path, [(1, 0.1), (2, None), (3, None)])
  checkpoint.write_score(tmp_path, 2, 0.8)
  save_scored(tmp_path, [(4, 0.2), (5, 0.3)])
  assert checkpoint.best_step(tmp_path) == 2
  assert kept(tmp_path) == ["2", "4", "5"]


def test_scores_outlive_checkpoints_and_go_back_with_the_run(tmp_path):
  assert checkpoint.read_scores(tmp_path) == {}
  checkpoint.drop_scores(tmp_path, None)
  assert not (tmp_path / "checkpoints").exists()
  checkpoint.write_score(tmp_path, 0, 0.25)  # The base has no checkpoint.
  save_scored(tmp_path, [(2, 0.5), (4, 1.0), (6, 0.0), (8, 0.0)])
  scores = {0: 0.25, 2: 0.5, 4: 1.0, 6: 0.0, 8: 0.0}
  assert checkpoint.read_scores(tmp_path) == scores
  checkpoint.drop_scores(tmp_path, 4)
  assert checkpoint.read_scores(tmp_path) == {0: 0.25, 2: 0.5, 4: 1.0}
  like = {"x": np.zeros(3)}
  assert checkpoint.restore(tmp_path, like)["x"].tolist() == [1, 1, 1]
  checkpoint.drop_scores(tmp_path, None)
  assert checkpoint.read_scores(tmp_path) == {}


@pytest.mark.parametrize("text", ["", "[1]", '{"2": [1]}', '{"two": 1}'])
def test_a_damaged_file_of_scores_is_one_line(tmp_path, text):
  checkpoint.write_score(tmp_path, 2, 0.5)
  (tmp_path / "checkpoints" / "scores.json").write_text(text)
  with pytest.raises(ValueError, match=r"scores.json is damaged .*delete it"):
    checkpoint.read_scores(tmp_path)


def test_what_was_tampered_with_is_not_believed(tmp_path, caplog):
  for step in (1, 2):
    checkpoint.save(tmp_path, step, {"x": np.full(3, step)}, wait=True)
  about = tmp_path / "checkpoints" / "2" / "about" / "metadata"
  about.write_text(about.read_text().replace('"step": 2', '"step": 1'))
  like = {"x": np.zeros(3, int)}
  assert checkpoint.restore(tmp_path, like)["x"].tolist() == [1, 1, 1]
  assert "its checksum is wrong" in caplog.text


def test_lost_rows_of_metrics_are_told(tmp_path, caplog):
  rows = tmp_path / "metrics.jsonl"
  rows.write_text('{"step": 1}\n{"step": 2}\n')
  checkpoint.save(tmp_path, 2, {"x": np.ones(3)}, wait=True)
  like = {"x": np.zeros(3)}
  checkpoint.restore(tmp_path, like)
  assert not caplog.text
  rows.write_text('{"step": 1}\n')
  checkpoint.restore(tmp_path, like)
  assert "metrics.jsonl" in caplog.text and "step 2" in caplog.text


def test_checkpoints_may_be_elsewhere(tmp_path):
  here, there = tmp_path / "run", tmp_path / "bucket"
  workdir.prepare(here, str(there))
  checkpoint.save(here, 3, {"train": {"params": {"w": np.ones(3)}}})
  assert checkpoint.latest_step(here) == 3
  assert (there / "checkpoints" / "3").is_dir()
  assert not (here / "checkpoints").exists()
  assert checkpoint.load_params(here)["w"].tolist() == [1, 1, 1]


def test_another_mesh_reads_it(tmp_path):
  devices = jax.devices()
  mesh = lambda *shape: jax.sharding.Mesh(
    np.array(devices[: math.prod(shape)]).reshape(shape), ("a", "b")
  )
  spread = lambda mesh, *axes: jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec(*axes)
  )
  x = np.arange(64.0, dtype=np.float32).reshape(8, 8)
  checkpoint.save(
    tmp_path, 1, {"x": jax.device_put(x, spread(mesh(4, 2), "a", "b"))}
  )
  layouts = (("b", "a"), (2, 4)), ((None, "a"), (2, 1)), ((), (1, 1))
  for axes, shape in layouts:
    like = {"x": jax.device_put(0 * x, spread(mesh(*shape), *axes))}
    back = checkpoint.restore(tmp_path, like)["x"]
    assert back.sharding == like["x"].sharding
    np.testing.assert_array_equal(back, x)


def test_saving_a_step_twice_is_saving_it_once(tmp_path):
  checkpoint.save(tmp_path, 3, make_state(3))
  checkpoint.save(tmp_path, 3, make_state(3))
  assert checkpoint.latest_step(tmp_path) == 3


def test_saved_buffers_may_be_donated(tmp_path):
  """While they are still being written."""
  state = {"x": jnp.ones((2000, 2000)), "y": jnp.ones(3)}
  step = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)
  for i in range(1, 5):
    checkpoint.save(tmp_path, i, state)
    state = step(step(step(state)))
    back = checkpoint.restore(tmp_path, state)
    assert {float(x.min()) for x in back.values()} == {3.0 * i - 2}
    assert {float(x.max()) for x in back.values()} == {3.0 * i - 2}


RESTORES = """
  import sys, numpy as np
  from r1jax.runtime import checkpoint, workdir
  like = {"x": np.zeros((40, 50), np.float32), "y": np.zeros(3, np.float32)}
  try:
    print(checkpoint.restore(sys.argv[1], like)["x"].max())
  except ValueError as error:
    print(error)
"""


def restored(workdir, python):
  """What another process restores: a failed read leaves threads behind."""
  done = python("-c", textwrap.dedent(RESTORES), workdir)
  assert done.returncode == 0, done.stderr
  return done.stdout.strip()


@pytest.mark.slow
def test_an_unreadable_checkpoint_is_passed_over(tmp_path, python):
  def tree(step):
    return {"x": np.full((40, 50), step, np.float32), "y": np.zeros(3, "f4")}

  for step in (1, 2, 3):
    checkpoint.save(tmp_path, step, tree(step), keep=3, wait=True)
  for path in (tmp_path / "checkpoints" / "3").rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  (tmp_path / "checkpoints" / "2" / "state" / "manifest.ocdbt").unlink()
  assert restored(tmp_path, python) == "1.0"
  assert checkpoint.latest_step(tmp_path) == 1
  checkpoint.save(
    tmp_path, 3, tree(3.5), wait=True
  )  # The step can be done again.
  assert restored(tmp_path, python) == "3.5"
  (tmp_path / "checkpoints" / "1" / "state" / "manifest.ocdbt").unlink()
  (tmp_path / "checkpoints" / "3" / "state" / "manifest.ocdbt").unlink()
  for _ in range(2):  # It is not taken for an empty workdir, now or later.
    assert "can be read; delete that folder" in restored(tmp_path, python)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda like: make_state(0, width=16),
      r"reference\.blocks\.bias: checkpoint has bfloat16\[3, 8\], "
      r"this config needs bfloat16\[3, 16\]; use another --workdir",
    ),
    (
      lambda like: like.replace(reference=None),
      r"reference\.blocks\.bias: .* this config needs nothing",
    ),
    (
      lambda like: like.replace(reference=like.reference | {"extra": 0.5}),
      r"reference\.extra: checkpoint has nothing, .* needs float64\[\]",
    ),
    (
      lambda like: like.replace(
        reference=like.reference | {"embed": jnp.zeros((16, 8), jnp.int8)}
      ),
      r"reference\.embed: checkpoint has float32\[16, 8\], .* int8\[16, 8\]",
    ),
  ],
  ids=["shape", "missing", "extra", "dtype"],
)
def test_another_model_is_refused(tmp_path, change, message):
  checkpoint.save(tmp_path, 1, make_state(1))
  message = f"^checkpoint of another model: {message}"
  with pytest.raises(ValueError, match=message):
    checkpoint.restore(tmp_path, change(make_state(0)))
  assert_same(checkpoint.restore(tmp_path, make_state(0)), make_state(1))


def test_params_alone(tmp_path):
  state = make_state(5)
  checkpoint.save(tmp_path, 5, state)
  assert_same(
    jax.tree.map(jnp.asarray, checkpoint.load_params(tmp_path)),
    state.train.params,
  )
  assert_same(
    checkpoint.load_params(tmp_path, "reference"),
    jax.tree.map(np.asarray, state.reference),
  )
  with pytest.raises(ValueError, match="holds no 'teacher'"):
    checkpoint.load_params(tmp_path, "teacher")
  with pytest.raises(FileNotFoundError, match="no checkpoint in"):
    checkpoint.load_params(tmp_path / "nowhere")


SAVES = """
  import sys, numpy as np
  from r1jax.runtime import checkpoint, workdir
  step = checkpoint.latest_step(sys.argv[1]) or 0
  while True:
    step += 1
    x = np.full((200, 500), step, np.float32)
    checkpoint.save(sys.argv[1], step, {"step": np.int32(step), "x": x, "y": x})
    print(step - 1, flush=True)  # The one before is durable.
"""


def kill_while_saving(workdir, delay):
  """The last step that a process saved before it was killed."""
  with subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(SAVES), str(workdir)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    last = int(process.stdout.readline())
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split()
  return max([last, *map(int, rest)])


def torture(workdir, times):
  random_delay = random.Random(0)
  like = {"step": np.int32(0), "x": np.zeros((200, 500), np.float32)}
  like["y"] = like["x"]
  for _ in range(times):
    durable = kill_while_saving(workdir, random_delay.uniform(0, 0.3))
    tree = checkpoint.restore(workdir, like)
    if tree is None:  # Killed before the first save was durable.
      assert durable == 0
      continue
    assert tree["step"] >= durable
    assert (tree["x"] == tree["step"]).all()
    assert (tree["y"] == tree["step"]).all()
    assert tree["step"] == checkpoint.latest_step(workdir)
  left = {p.name for p in (workdir / "checkpoints").iterdir()}
  assert len(left) <= 4, "drafts of killed saves pile up"
  assert not [name for name in left if "unreadable" in name]


@pytest.mark.slow
def test_killed_five_times_while_saving(tmp_path):
  torture(tmp_path, 5)


@pytest.mark.soak
def test_killed_fifty_times_while_saving(tmp_path):
  torture(tmp_path, 50)


def test_saving_is_quick(tmp_path):
  tree = {f"w{i}": np.ones((100, 1000), np.float32) for i in range(10)}
  checkpoint.save(tmp_path, 0, tree)
  checkpoint.latest_step(tmp_path)  # Waits for it.
  began = time.monotonic()
  checkpoint.save(tmp_path, 1, tree, wait=True)
  assert time.monotonic() - began < float(os.environ.get("SAVE_LIMIT", 2))
