# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 7. Planning a pod that is not there
#
# Does R1-Zero at 671 billion parameters fit a pod, how should the mesh split
# it, and what bounds an update? `r1jax plan` answers on a CPU. For TPUs, XLA
# compiles the run's own programs; for GPUs, as here, the sizes of all arrays
# are exact and the rest is estimated.

# %% [markdown]
# On Colab, Kaggle or any other machine without r1jax, this cell installs it; a
# CPU is enough, and a GPU or a TPU is quicker. Elsewhere it only goes to the
# folder that holds `experiments/`.

# %%
import importlib.util
import os
import pathlib
import shutil

if importlib.util.find_spec("r1jax") is None:
  tpus = [*pathlib.Path("/dev").glob("accel*")]
  extra = (
    "gpu" if shutil.which("nvidia-smi") else "tpu" if tpus else "notebooks"
  )
  os.system("git clone THIS_REPOSITORY r1jax")
  os.system(f"pip install -q -e 'r1jax[{extra}]'")
  os.chdir("r1jax")

import r1jax

os.chdir(pathlib.Path(r1jax.__file__).parents[1])
FAST = "R1JAX_FAST" in os.environ  # A few seconds, to try the notebook itself.
# %%
import matplotlib.pyplot as plt
import numpy as np

from r1jax.tools.plan import text
from r1jax.tools.plan.chips import topology
from r1jax.tools.plan.command import plan
from r1jax.tools.plan.meshes import ranked

plt.rcParams |= {"figure.dpi": 80, "font.size": 10, "axes.grid": True}
plt.rcParams |= {"grid.alpha": 0.3, "figure.constrained_layout.use": True}
GIB = 2**30

# %% [markdown]
# ## One plan
#
# R1-Zero on Qwen2.5-Math-7B, on 64 GPUs of 8 hosts. The parts of the
# memory that a gradient takes, a GPU:

# %%
config = r1jax.load_config("experiments/r1_zero.py:qwen_math_7b")
report = plan(config, topology("h200:8x8"), only=("gradient",))
print(text.text(report))

# %% [markdown]
# ## Another size, another pod
#
# The same question for the 671B and for pods of several sizes. A bar is the
# memory of one GPU while it computes a gradient; the line is what it has.

# %%
hosts = (32, 64, 128, 256) if not FAST else (4, 8)
which = "experiments/r1_zero.py" + ":qwen_math_7b" * FAST
parts, room = {}, 0.0
for count in hosts:
  config = r1jax.load_config(which)
  devices = 8 * count
  mesh = config.mesh  # More GPUs split the weights further.
  mesh.fsdp = devices // (mesh.expert * mesh.context)
  pod = topology(f"h200:8x{count}")
  (gradient,) = plan(config, pod, only=("gradient",))["programs"].values()
  room = pod.memory(devices) / GIB
  for name, size in (gradient["parts"] | gradient["estimated"]).items():
    parts.setdefault(name, []).append(size / GIB)

figure, ax = plt.subplots(figsize=(8, 3.4))
bottom = np.zeros(len(hosts))
labels = [f"{8 * count} GPUs" for count in hosts]
for name, heights in parts.items():
  ax.bar(labels, heights, bottom=bottom, label=name)
  bottom += heights
ax.axhline(room, color="black", linestyle="--", label="memory of a GPU")
ax.set(ylabel="GiB a GPU", title="the gradient of a microbatch")
ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()
# %% [markdown]
# ## Which mesh
#
# `--sweep_mesh` ranks all meshes that the run fits. `fsdp` and `expert` split
# weights, `context` the tokens of a row, `tensor` heads and hidden units. The
# first few, by their estimated time:

# %%
config = r1jax.load_config(which)
pod = topology(f"h200:8x{hosts[-1]}")
best = ranked(config, pod, pod.num_chips)
print(f"{len(best)} meshes fit {pod.name}")
for candidate in best[:6]:
  sizes = {k: v for k, v in candidate.mesh.items() if v > 1}
  print(f"{candidate.seconds:8.0f} s {candidate.bytes / GIB:6.0f} GiB  {sizes}")

# %%
figure, ax = plt.subplots(figsize=(6, 3))
points = ax.scatter(
  [each.bytes / GIB for each in best],
  [each.seconds for each in best],
  c=[np.log2(each.mesh["context"]) for each in best],
  s=12,
)
ax.set(xlabel="GiB a GPU", ylabel="seconds of an update", yscale="log")
figure.colorbar(points, label="log2 of context")
plt.show()

# %% [markdown]
# ## TPUs
#
# With libtpu (`make plan`, which makes an environment that has it) the same
# programs are compiled for the pod: memory, FLOPs, bytes and collectives are
# then those of the compiled program, and faults such as a gathered model are
# named. `docs/scale.md` has the plans of the large runs.
#
#     make plan CONFIG=experiments/r1_zero.py TOPOLOGY=v5p:8x8x8
