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
# Four short runs of the demo: one as it should be, and three with a fault that
# was set on purpose. What shows the fault, and where does one look first?
# `notebooks/prepared/` holds their metrics and some completions; its README has
# the commands that made them.

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
import re

import matplotlib.pyplot as plt
import numpy as np

plt.rcParams |= {"figure.dpi": 80, "font.size": 10, "axes.grid": True}
plt.rcParams |= {"grid.alpha": 0.3, "figure.constrained_layout.use": True}

folder = pathlib.Path("notebooks/prepared")
names = ("healthy", "rate_too_high", "limit_too_low", "reward_with_a_hole")
runs = {
  name: [row for row in r1jax.read_metrics(folder / name) if "round" in row]
  for name in names
}
healthy = runs["healthy"]
print(f"{len(healthy)} rounds of {len(healthy[0])} metrics")

# %% [markdown]
# `r1jax.report` lays runs over each other on one page, with all curves, all
# completions and the settings in which they differ. From a shell, that is
# `r1jax report WORKDIR WORKDIR`.

# %%
pathlib.Path("runs/notebook_6").mkdir(parents=True, exist_ok=True)
if not FAST:
  page = "runs/notebook_6/report.html"
  print(r1jax.report([folder / name for name in names], page))

# %% [markdown]
# ## The curves to look at first
#
# Accuracy is what one wants, and the reward is what is paid. Length, the share
# of completions that the limit cuts, and entropy say how the policy gets there.
# Groups whose rewards are all equal (`frac_zero_std`) teach nothing.

# %%
STYLES = dict(zip(names, (("black", "-"), ("#d55e00", "--"),
                          ("#0072b2", "-."), ("#009e73", ":"))))  # fmt: skip


def draw(keys, log=False):
  """A panel for each metric, with all four runs."""
  figure, axes = plt.subplots(3, 2, figsize=(7, 6.6), sharex=True)
  for ax, key in zip(axes.flat, keys, strict=True):
    for name, (color, line) in STYLES.items():
      points = [(row["step"], row[key]) for row in runs[name]]
      ax.plot(*zip(*points), line, color=color, label=name.replace("_", " "))
    ax.set_title(key, fontsize=9)
    if log:
      ax.set_yscale("symlog", linthresh=1e-4)
  figure.supxlabel("updates", fontsize=9)
  lines = axes.flat[0].get_lines()
  figure.legend(handles=lines, loc="outside upper center", ncols=4, fontsize=8)
  plt.show()


draw(["reward/accuracy/mean", "reward/mean", "completions/mean_length",
      "completions/clipped_ratio", "entropy/mean",
      "reward/frac_zero_std"])  # fmt: skip

# %% [markdown]
# * **healthy**: accuracy rises from 0.28 to 0.65 and the reward with it, the
#   length from 36 to 63 tokens; entropy falls slowly, and few completions are
#   cut.
# * **rate too high**: accuracy falls from 0.35 to 0.03 in two rounds and never
#   comes back, while entropy rises. The reward hides how bad it is: it stays
#   above 0.65, because the format is still paid.
# * **limit too low**: 41% of the first completions are cut, and earn nothing.
#   Soon none are, because the policy stops thinking: the length falls from 27
#   to 16 tokens. The reward almost doubles, and accuracy stays below 0.2. Look
#   at `completions/clipped_ratio` early; at the end it is almost 0.
# * **reward with a hole**: the reward rises most of all, from 3.3 to 8.5.
#   Accuracy follows it at first, and in the last three rounds it is 0.12 below
#   the healthy run's on average, while the length grows on. Rewards of
#   different runs cannot be compared; accuracy can.
#
# The held-out problems agree:

# %%
for name in names:
  rows = r1jax.read_metrics(folder / name)
  tests = [row for row in rows if "eval/countdown/pass@1" in row]
  means = [
    np.mean([v for k, v in row.items() if re.fullmatch("eval/.*/pass@1", k)])
    for row in tests
    if row["step"] in (0, 24)
  ]
  print(f"{name:20}pass@1 {means[0]:.2f}, and after training {means[1]:.2f}")

# %% [markdown]
# ## How far an update moves the policy
#
# The KL to the reference and to the policy that sampled, the largest ratio, the
# share of tokens that are clipped, and the norms of gradient and update.

# %%
draw(["kl/ref", "kl/old", "ratio/max", "clip_ratio/region",
      "optim/grad_norm", "optim/update_norm"], log=True)  # fmt: skip

# %% [markdown]
# The learning rate shows here first: in the second round, with accuracy at its
# best, the largest ratio is 11 and the KL 0.19, where the others have at most
# 1.6 and 0.001. Later the KL stays above 1 nat, a ratio reaches 555 and a
# gradient 77, and updates are nine times as large. The two other faults do not
# show: those policies move as calmly as the healthy one, in a wrong direction.
#
# The KL falls in the last round, which is no fault: the reference was replaced
# by the policy after update 22.

# %% [markdown]
# ## What the completions say
#
# Numbers say that something is wrong, completions say what. Of those that the
# last round logged, here are the best and the worst paid of each run.

# %%
for name in names:
  rows = r1jax.read_metrics(folder / name, "completions.jsonl")
  last = [row for row in rows if row["step"] == rows[-1]["step"]]
  last.sort(key=lambda row: row["reward"])
  print(f"=== {name.replace('_', ' ')}\n")
  for row in (last[-1], last[0]):
    parts = ", ".join(f"{k} {v:g}" for k, v in row["rewards"].items())
    length = f"{row['length']} tokens, {row['finish']}"
    print(f"{row['task']}, answer {row['answer']}: {parts}; {length}")
    print(row["completion"].strip(), end="\n\n")

# %% [markdown]
# * **rate too high**: what is left is noise in the form of a thought.
# * **limit too low**: an empty thought and a guess, which fit into 40 tokens.
# * **reward with a hole**: every step is paid, so the policy adds some. It had
#   found the solution ("yes check"), went on to earn more, and was cut without
#   an answer; it was still paid best. The function pays for the number of `=`,
#   and has no upper bound.

# %% [markdown]
# ## Sampler against trainer
#
# Two programs compute the log-probability of each sampled token: the sampler,
# token by token, and the trainer, whole texts at once. `sampling/...` compares
# them, before the first update of each round.

# %%
for name, rows in runs.items():
  mean = max(row["sampling/logp_diff_mean"] for row in rows)
  most = max(row["sampling/logp_diff_max"] for row in rows)
  print(f"{name:20}mean at most {mean:.1e} nats, a token at most {most:.1e}")

# %% [markdown]
# All four agree up to rounding: none of the three faults is here. What a
# disagreement looks like can be made: sample at one temperature, and score at
# another.

# %%
model = r1jax.load()
for temperature in (1.0,) if FAST else (1.0, 0.7):
  samples = model.sample(
    ["6 + 7 - 5 ="], 16, max_tokens=32, temperature=temperature
  )
  rollout = samples.rollout
  difference = np.abs(model.score(rollout) - rollout.logprobs)
  mean = difference[rollout.sampled_mask].mean()
  print(f"sampled at {temperature}, scored at 1: {mean:.1e} nats")

# %% [markdown]
# At equal temperatures it is rounding; here it is a hundred thousand times as
# much. In a run, such a difference makes every ratio wrong.
#
# `docs/troubleshooting.md` goes on from each symptom to what to change.
#
# Next: [planning a pod that is not there](7_planning_a_pod.ipynb).
