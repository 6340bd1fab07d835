"""A run goes on with another mesh and other rows, and with nothing else."""

import inspect
import shutil

import numpy as np
import pytest

from r1jax import config as configs
from r1jax import hf
from r1jax.models.config import RUNTIME_FIELDS
from r1jax.runtime import metrics, workdir
from r1jax.training import grpo

EIGHT = {
  "mesh": dict(data=2, fsdp=2, expert=2),
  "rollout_mesh": dict(data=8),
  "rows": dict(widths=(48,), shard_rows=1),
  "num_steps": 2,
  "reference_every": 4,
}
FOUR = {
  "mesh": dict(data=1, fsdp=2, tensor=2),
  "rollout_mesh": dict(data=2, tensor=2),
  "rows": dict(widths=(64,), shard_rows=1),
  "num_steps": 4,
  "reference_every": 4,
  "sampling.num_slots": 8,
  "sampling.prompt_tokens": 10,
  "grader.num_workers": 2,
  "offload": ("optimizer",),
}


def changed(config, changes):
  """The config with other values; a section is replaced as a whole."""
  with config.unlocked():
    for key, value in changes.items():
      *parents, last = key.split(".")
      node = config
      for name in parents:
        node = node[name]
      node[last] = value
  configs.check(config)
  return config


def last_round(folder):
  return [row for row in metrics.read(folder) if "loss/total" in row][-1]


@pytest.mark.slow
def test_a_run_on_eight_devices_goes_on_on_four(
  make_config, compiled_once, base, tmp_path, caplog
):
  """With other rows, another sampler, and its base in another place."""
  elsewhere = shutil.copytree(base, tmp_path / "elsewhere")
  eight = lambda **more: changed(make_config(), EIGHT | more)
  grpo.train(eight(), str(tmp_path / "eight"))
  shutil.copytree(tmp_path / "eight", tmp_path / "four")
  grpo.train(eight(num_steps=4), str(tmp_path / "eight"))
  assert not caplog.text
  four = changed(make_config(), FOUR)
  four.model.path = four.tokenizer.path = str(elsewhere)
  grpo.train(four, str(tmp_path / "four"))
  for change in ("mesh.tensor was", "rows.widths was", "offload was"):
    assert change in caplog.text
  one, other = (last_round(tmp_path / name) for name in ("eight", "four"))
  assert one["step"] == other["step"] == 4
  for name in ("loss/total", "entropy/mean", "optim/grad_norm", "kl/ref"):
    np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-7)
  assert one["reward/mean"] == other["reward/mean"] > 0
  four.optimizer.learning_rate = 0.01
  with pytest.raises(ValueError, match="optimizer.learning_rate was 0.03, is"):
    grpo.train(four, str(tmp_path / "four"))
  other = hf.load(base)[1] | {"unembed": np.ones((16, 40), np.float32)}
  hf.save(elsewhere, hf.open_model(base)[0], other, tokenizer=base)
  with pytest.raises(ValueError, match="the model has changed since the run"):
    grpo.train(
      changed(four, {"optimizer.learning_rate": 0.03}), str(tmp_path / "four")
    )


@pytest.mark.parametrize("key", workdir.PERIODS + workdir.EXECUTION)
def test_what_may_change_is_in_a_config(key):
  name, *rest = key.split(".")
  loops = [configs.loop(loop) for loop in configs.LOOPS]
  found = [x for x in loops if name in (*x.SECTIONS, *x.FIELDS)]
  assert found
  if name == "model":
    assert rest[0] == "how" and rest[1] in RUNTIME_FIELDS
  elif rest:
    (parameter,) = rest
    readers = [inspect.signature(x.SECTIONS[name]) for x in found]
    assert any(parameter in reader.parameters for reader in readers)
