"""No host holds a model whole: to start, to resume, to save or to export."""

import json
import sys
import textwrap

import jax
import job
import ml_dtypes
import numpy as np
import pytest

from r1jax import hf
from r1jax.models.presets import preset
from r1jax.models.weights import weights

pytestmark = pytest.mark.cluster

# Bytes beyond a host's share of the model. On a CPU, the share is the memory of
# its device; what is beyond it passes through. Of it, 64 MiB are one chunk in
# `hf.read`, and 64 MiB what Orbax reads at once.
BEYOND = 300e6
PHASES = """
import functools, json, sys
import jax, optax
import numpy as np
from absl import flags
from r1jax import hf
from r1jax.parallel.mesh import make_mesh
from r1jax.runtime import checkpoint, distributed
from r1jax.training import models
from r1jax.training.state import restore_or_init
from r1jax.training.update import init_state

for name in ("coordinator_address", "source", "workdir", "target"):
  flags.DEFINE_string(name, None, "")
for name in ("num_processes", "process_id"):
  flags.DEFINE_integer(name, None, "")
flag = flags.FLAGS
flag(sys.argv)

def status(name):
  lines = open("/proc/self/status").read().splitlines()
  return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(name))

peaks = {}
def measured(phase, function, *args, **kwargs):
  open("/proc/self/clear_refs", "w").write("5")  # The peak begins anew.
  before = status("VmRSS")
  result = jax.block_until_ready(function(*args, **kwargs))
  peaks[phase] = status("VmHWM") - before
  return result

with distributed.job(
  flag.coordinator_address, flag.num_processes, flag.process_id
):
  mesh = make_mesh(data=1, fsdp=2, expert=2)
  initial = models.initial("pretrained", path=flag.source, dtype="bfloat16")
  begin = functools.partial(
    restore_or_init,
    flag.workdir,
    mesh,
    initial,
    functools.partial(init_state, optimizer=optax.sgd(0.0)),
    (),
  )
  state, step = measured("start", begin)
  assert step is None
  measured("save", checkpoint.save, flag.workdir, 1, state, wait=True)
  del state
  hf.read = None
  state, step = measured("resume", begin)
  assert step == 0
  measured("export", hf.save, flag.target, initial.config, state.params)
  print(json.dumps(peaks), flush=True)
"""


class Made:
  """An array whose blocks are drawn when they are asked for."""

  dtype = np.dtype(ml_dtypes.bfloat16)

  def __init__(self, shape):
    self.shape = shape

  def __getitem__(self, lead):
    shape = self.shape[len(lead) :]
    rng = np.random.default_rng([*self.shape, *lead])
    numbers = rng.integers(0, 2**14, shape, np.uint16)  # Finite as bfloat16.
    return numbers.view(self.dtype)


def model_of(gigabytes):
  """A DeepSeek-V3 whose bfloat16 parameters take so many, most in experts."""
  expert = 3 * 1024 * 512
  count = int(gigabytes * 1e9 / 2 / expert / 4)  # In each of four layers.
  return preset(
    "tiny_deepseek",
    width=1024,
    num_layers=5,
    mtp_depth=0,
    experts=dict(width=512, num_routed=count // 2 * 2),
  )


@pytest.mark.parametrize(
  "gigabytes", [0.5, pytest.param(4, marks=pytest.mark.soak)]
)
def test_four_processes_share_a_model(tmp_path, gigabytes):
  source, target = tmp_path / "model", tmp_path / "export"
  config = model_of(gigabytes)
  params = jax.tree.map(lambda weight: Made(weight.shape), weights(config))
  hf.save(source, config, params)
  size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
  assert size == pytest.approx(gigabytes * 1e9, rel=0.1)
  (tmp_path / "phases.py").write_text(textwrap.dedent(PHASES))
  command = [sys.executable, str(tmp_path / "phases.py")]
  command += [f"--source={source}", f"--target={target}"]
  command += [f"--workdir={tmp_path / 'run'}"]
  ended = job.succeeded(job.finish(job.start(command, 4, 1), timeout=500))
  for _, said, _ in ended:
    print(said.splitlines()[-1])
    for phase, peak in json.loads(said.splitlines()[-1]).items():
      share = 0 if phase == "export" else size / 4
      assert peak < share + BEYOND, (phase, said)
  for file in source.glob("*.safetensors"):
    assert (target / file.name).read_bytes() == file.read_bytes()
