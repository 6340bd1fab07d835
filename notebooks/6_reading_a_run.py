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
# # 6. Reading a run
#
# Four runs of the demo, prepared: one as it should be, and three with something
# wrong. What shows it, and where to look first? `notebooks/prepared/` has their
# metrics; its README has the commands that make them again.

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

from r1jax.runtime.metrics import METRICS

plt.rcParams |= {"figure.dpi": 80, "font.size": 10, "axes.grid": True}
plt.rcParams |= {"grid.alpha": 0.3, "figure.constrained_layout.use": True}

names = ("healthy", "rate_too_high", "limit_too_low", "reward_with_a_hole")
folder = pathlib.Path("notebooks/prepared")
runs = {
  name: [r for r in r1jax.read_metrics(folder / name) if "round" in r]
  for name in names
}
print(len(runs["healthy"][0]), "numbers a round, such as")
for name in ("kl/ref", "completions/clipped_ratio", "reward/frac_zero_std"):
  print(f"  {name:28}", *METRICS[name])

# %% [markdown]
# ## The curves
#
# A run's own report is `r1jax report WORKDIR`, and `r1jax report A B` lays
# several over each other. Here are the curves to read first.


# %%
def draw(keys, columns=3):
  """A panel for each metric, with all four runs."""
  rows = -(-len(keys) // columns)
  figure, axes = plt.subplots(rows, columns, figsize=(9, 2.5 * rows))
  for ax, key in zip(axes.flat, keys):
    for style, (name, rounds) in zip(("-", "--", "-.", ":"), runs.items()):
      points = [(row["step"], row[key]) for row in rounds if key in row]
      ax.plot(*zip(*points), style, label=name.replace("_", " "))
    ax.set_title(key, fontsize=9)
  axes.flat[0].legend(fontsize=7)


draw(
  [
    "reward/mean",
    "reward/accuracy/mean",
    "completions/mean_length",
    "entropy/mean",
    "completions/clipped_ratio",
    "reward/frac_zero_std",
  ]
)
plt.show()

# %% [markdown]
# * **healthy**: reward and accuracy rise together, the length grows, entropy
#   falls slowly.
# * **rate too high**: the reward falls within a few updates, and never comes
#   back.
# * **limit too low**: many completions are cut at the limit; what cannot be
#   finished cannot be rewarded, so the policy learns to be short.
# * **reward with a hole**: the reward rises while accuracy, which is measured
#   with a weight of 0, does not follow.

# %% [markdown]
# ## The policy and its steps

# %%
draw(
  ["kl/ref", "optim/grad_norm", "ratio/max", "clip_ratio/region", "kl/old",
   "optim/update_norm"]
)  # fmt: skip
plt.show()

# %% [markdown]
# KL to the reference, clipped tokens and the norm of the update say how far the
# policy moves. The run with the high rate is orders of magnitude above the
# others: lower the learning rate first, before anything else.

# %% [markdown]
# ## Sampler against trainer
#
# Both compute the log-probability of every sampled token. On one shape of
# machine they differ by rounding only; a difference that grows means that they
# no longer run the same model, and every ratio is wrong.

# %%
draw(["sampling/logp_diff_mean", "sampling/logp_diff_max",
      "sampling/prob_diff_mean"])  # fmt: skip
plt.show()

# %% [markdown]
# ## Completions
#
# Numbers say that something is wrong, completions say what. The last round's
# first completion of a run that was rewarded with a hole in it, and those of
# the others:

# %%
for name in names:
  rows = r1jax.read_metrics(folder / name, "completions.jsonl")
  row = rows[-1]
  parts = {k: round(v, 2) for k, v in row["rewards"].items() if v is not None}
  print(f"=== {name}, step {row['step']}, {parts}, answer {row['answer']}")
  print(row["prompt"].strip()[-60:])
  print(row["completion"][:300], "\n")

# %% [markdown]
# Next: [planning a pod that is not there](7_planning_a_pod.ipynb).
