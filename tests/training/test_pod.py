"""R1-Zero on a pod: `r1jax train` on eight hosts, killed, and on with four.

The command, the experiment (experiments/r1_zero.py), the rewards and the model
are the real ones, but small: the base model of the demo, a DeepSeek-V3 with
dense and MoE layers and an MTP block, is read from a sharded checkpoint.
"""

import json
import operator
import os
import pathlib
import random
import shutil
import signal
import sys
import time

import job
import numpy as np
import pytest
from trees import assert_same

from r1jax import data, hf
from r1jax.rollouts import records
from r1jax.runtime import checkpoint
from r1jax.types import Example

pytestmark = [pytest.mark.cluster, pytest.mark.soak]

BASE = job.ROOT / "r1jax" / "base"
CONFIG = """
from r1jax import config

def get_config():
  c = config.load("experiments/r1_zero.py")
  with c.unlocked():
    c.mesh.num_slices = 1
    c.update_from_flattened_dict({changes!r})
  return c
"""
SMALL = {
  "num_steps": 100,
  "checkpoint_every": 2,
  "reference_every": 4,
  "prompts_per_round": 8,
  "group_size": 4,
  "minibatches": 2,
  "model.preset_name": None,
  "model.compute_dtype": "float32",  # So that meshes agree but for rounding.
  "model.how": dict(scan=True, remat="block", moe_chunk=64),
  "grader.num_workers": 1,
  "rows.widths": (512,),
  "optimizer.learning_rate": 1e-4,
} | {
  f"{section}.{name}": value
  for section, values in {
    "sampling": dict(
      num_slots=32, decode_steps=16, prompt_tokens=64, max_tokens=64
    ),
    "evaluation": dict.fromkeys(
      ("problems", "samples", "problems_between", "samples_between"), 2
    ),
  }.items()
  for name, value in values.items()
}
# Two slices of four hosts, which split experts and the tokens of rows.
EIGHT = (
  *("mesh.data=2", "mesh.fsdp=1", "mesh.expert=2", "mesh.context=2"),
  *("mesh.num_slices=2", "rollout_mesh.expert=4"),
)
FOUR = (
  *("mesh.data=1", "mesh.fsdp=2", "mesh.expert=2", "mesh.context=1"),
  "rollout_mesh.expert=2",
)
ONE = (
  "mesh.fsdp=1",
  "mesh.expert=1",
  "mesh.context=1",
  "rollout_mesh.expert=1",
)
NUMBERS = (
  *("loss/total", "entropy/mean", "optim/grad_norm", "kl/ref"),
  *("reward/mean", "completions/mean_length"),
)


def write_problems(path, count=80):
  """Sums as the base model of the demo has seen them."""
  rng, lines = random.Random(0), []
  for _ in range(count):
    total = rng.randint(1, 9)
    text = f"{total}"
    for _ in range(3):
      sign, number = rng.choice("+-"), rng.randint(1, 9)
      total = (operator.add if sign == "+" else operator.sub)(total, number)
      text += f" {sign} {number}"
    problem = "State the final answer to the following arithmetic problem: "
    lines.append({"problem": f"{problem}{text} =", "answer": str(total)})
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def shard(source, target, file_bytes):
  """The path of a copy in several files, as large models are released."""
  config, params = hf.open_model(source, dtype="bfloat16")
  hf.save(target, config, params, tokenizer=source, file_bytes=file_bytes)
  assert (target / "model.safetensors.index.json").exists()
  assert config.mtp_depth and config.experts.num_dense_layers
  return str(target)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
  """`start(processes, workdir, *changes)`: the processes of a job."""
  folder = tmp_path_factory.mktemp("pod")
  base = shard(BASE, folder / "base", 5e5)
  write_problems(folder / "problems.jsonl")
  paths = {
    "model.path": base,
    "tokenizer.path": base,
    "dataset.path": str(folder / "problems.jsonl"),
    "evaluation.test.path": str(folder / "problems.jsonl"),
  }
  (folder / "config.py").write_text(CONFIG.format(changes=SMALL | paths))
  command = [sys.executable, "-m", "r1jax", "train"]
  command += [f"--config={folder / 'config.py'}", "--sinks=jsonl", "--dump"]
  name = "JAX_COMPILATION_CACHE_DIR"
  env = {
    name: os.environ.get(name) or str(folder / "xla"),
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
  }
  started = []

  def start(processes, workdir, *changes):
    flags = [f"--config.{change}" for change in changes]
    flags.append(f"--workdir={workdir}")
    started.extend(job.start([*command, *flags], processes, 1, **env))
    return started[-processes:]

  yield start
  for process in started:
    process.kill()
    with process:  # Closes its pipes, and waits.
      pass


def wait_for_checkpoint(processes, workdir, step, seconds=1200):
  """Waits until a checkpoint is durable, while all processes run."""
  end = time.monotonic() + seconds
  while (checkpoint.latest_step(workdir) or 0) < step:
    for process in processes:
      assert process.poll() is None, process.communicate()
    assert time.monotonic() < end, f"no checkpoint of step {step}"
    time.sleep(0.1)


def finish(processes):
  return job.finish(processes, timeout=1200)


def round_of(workdir, step):
  """The row of the round that ended at `step`."""
  (row,) = (
    row
    for row in job.rows(workdir)
    if row["step"] == step and "loss/total" in row
  )
  return row


def assert_close(one, other, rtol=1e-5):
  for name in NUMBERS:
    np.testing.assert_allclose(
      one[name], other[name], rtol=rtol, atol=1e-7, err_msg=name
    )


def writers(workdir, round):
  files = sorted((pathlib.Path(workdir) / "rollouts").glob(f"{round:06}*"))
  return [file.name.partition(".")[0][6:] for file in files]


def test_r1_zero_on_eight_hosts_goes_on_on_four(start, python, tmp_path):
  run, straight, branch = (tmp_path / name for name in ("run", "one", "branch"))
  # A host of eight is lost in the third round, and takes the others down.
  eight = start(8, run, *EIGHT)
  wait_for_checkpoint(eight, run, 4)
  eight[5].send_signal(signal.SIGKILL)
  for host, (code, _, errors) in enumerate(finish(eight)):
    assert code == (-signal.SIGKILL if host == 5 else 1), errors
    if host != 5:
      last = errors.strip().splitlines()[-1]
      assert last.startswith("error: host 5 ("), errors
  step = checkpoint.latest_step(run)
  assert writers(run, 1) == [f"-{i:05}-of-00008" for i in range(8)]
  shutil.copytree(run, branch)
  # Four go on, are told to stop, and go on again to the end.
  further = (*FOUR, f"num_steps={step + 4}")
  four = start(4, run, *further)
  wait_for_checkpoint(four, run, step + 2)
  for process in four:
    process.send_signal(signal.SIGTERM)
  ended = finish(four)
  assert {code for code, _, _ in ended} == {128 + signal.SIGTERM}, ended
  _, _, told = ended[0]
  for change in ("hosts was 8, is 4", "mesh.fsdp was 1, is 2", "stopped at"):
    assert change in told
  job.succeeded(finish(start(4, run, *further)))
  assert checkpoint.latest_step(run) == step + 4
  assert writers(run, step // 2) == [f"-{i:05}-of-00004" for i in range(4)]
  # From the same checkpoint, one process computes the same next round, ...
  job.succeeded(finish(start(1, branch, *ONE, f"num_steps={step + 2}")))
  assert_close(round_of(branch, step + 2), round_of(run, step + 2))
  assert writers(branch, step // 2) == [""]
  # ... and one that began by itself had the same first one.
  job.succeeded(finish(start(1, straight, *ONE, "num_steps=2")))
  assert_close(round_of(straight, 2), round_of(run, 2))
  one, same = (records.load(folder, 0) for folder in (straight, run))
  assert one.examples == same.examples and one.written == same.written
  assert 0 < np.mean(same.scores.parts["accuracy"]) < 1
  np.testing.assert_array_equal(one.scores.total, same.scores.total)
  # What was trained on all these meshes is a model for others.
  export = tmp_path / "export"
  done = python(
    "-m", "r1jax", "convert", f"--source={run}", f"--target={export}"
  )
  assert done.returncode == 0, done.stderr
  _, exported = hf.load(export)
  trained = checkpoint.load_params(run)
  assert "mtp" in trained
  assert_same(exported, trained)
  moved = np.abs(trained["embed"] - hf.load(BASE)[1]["embed"]).max()
  assert moved > 1e-5


def test_a_toy_on_four_hosts_goes_on_on_two(base, tmp_path):
  """As above, with two devices in each host, and a reward that is quick."""
  run, branch = tmp_path / "run", tmp_path / "branch"
  sharded = shard(base, tmp_path / "base", 1e4)
  command = [*job.write(tmp_path / "job", sharded), "--config.num_steps=3"]
  env = {
    "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"),
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
  }

  def do(processes, devices, workdir, *changes, **more):
    flags = [f"--config.{change}" for change in changes]
    flags.append(f"--workdir={workdir}")
    return finish(
      job.start([*command, *flags], processes, devices, **env | more)
    )

  # Host 1 grades the third of the four problems of a round.
  letters = [Example("", "", "", str(i)) for i in range(40)]
  problem = data.draw(letters, 4, seed=3, step=2)[2].id
  fail = dict(FAIL=f"kill:1:{problem}", DIED=str(tmp_path / "died"))
  meshes = ("mesh.data=2", "mesh.expert=2", "mesh.context=2")
  slices = ("mesh.num_slices=2", "rollout_mesh.expert=2")
  ended = do(4, 2, run, *meshes, *slices, **fail)
  codes = [code for code, _, _ in ended]
  assert codes == [1, -signal.SIGKILL, 1, 1], ended
  assert checkpoint.latest_step(run) == 2
  shutil.copytree(run, branch)
  job.succeeded(do(2, 2, run, "mesh.fsdp=2", "mesh.expert=2"))
  job.succeeded(do(1, 1, branch))
  assert_close(round_of(run, 3), round_of(branch, 3))
  assert round_of(run, 3)["optim/grad_norm"] > 0.1
