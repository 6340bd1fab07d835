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

# The peak of each phase, in shares of the model that a host has (a quarter of
# N gigabytes). One share is the memory of its device, which is that of the host
# here. Orbax has another one in host memory when it reads or writes.
SHARES = {"start": 1, "save": 1, "resume": 2, "export": 0}
BEYOND = 300e6  # Bytes that may come on top, whatever the size of the model.
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


@pytest.mark.soak
@pytest.mark.parametrize("gigabytes", [0.5, 4])
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
    peaks = json.loads(said.splitlines()[-1])
    for phase, shares in SHARES.items():
      assert peaks[phase] < shares * size / 4 + BEYOND, peaks
  for file in source.glob("*.safetensors"):
    assert (target / file.name).read_bytes() == file.read_bytes()
