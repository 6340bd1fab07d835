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
# # 4. Rewards, the sandbox, and how policies cheat
#
# A policy finds whatever a reward pays for. Rewards here are functions of an
# example and a completion; this page tries to fool them.

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
# %% [markdown]
# ## Mathematics
#
# What counts is the last answer behind the last `</think>`, compared by value.

# %%
problem = r1jax.Example("What is 1/2 + 1/4?", r"\frac{3}{4}", "math")
think = "<think> two quarters and one </think> "
texts = {
  "a fraction": think + r"<answer> \boxed{3/4} </answer>",
  "a decimal": think + "<answer> 0.75 </answer>",
  "as LaTeX": think + r"<answer> \dfrac{6}{8} </answer>",
  "wrong": think + "<answer> 2/6 </answer>",
  "only in the thought": r"<think> \boxed{3/4} </think> I am done.",
  "two answers, the last wrong": think + r"\boxed{3/4} or \boxed{1/4}",
  "every number there is": think + "<answer> 1/4, 2/4, 3/4, 4/4 </answer>",
  "no answer": think,
}
scores = r1jax.grade(
  [problem] * len(texts), [*texts.values()], accuracy=1.0, format=1.0, tags=0.0
)
print(f"{'':30}" + "".join(f"{name:>10}" for name in scores.parts))
for i, name in enumerate(texts):
  row = "".join(f"{part[i]:10.2f}" for part in scores.parts.values())
  print(f"{name:30}{row}")

# %% [markdown]
# ## Shapes of length
#
# Long answers can be charged for. DAPO's soft penalty begins a `buffer` before
# the limit; `cosine` pays short right answers and long wrong ones more.

# %%
import matplotlib.pyplot as plt
import numpy as np

plt.rcParams |= {"figure.dpi": 80, "font.size": 10, "axes.grid": True}
plt.rcParams |= {"grid.alpha": 0.3, "figure.constrained_layout.use": True}
lengths = np.arange(1, 1025, 64 if FAST else 16)
completions = [
  r1jax.Completion(texts[kind], int(n), 1024)
  for kind in ("a fraction", "wrong")
  for n in lengths
]
scores = r1jax.grade(
  [problem] * len(completions),
  completions,
  cosine=1.0,
  overlong=dict(weight=1.0, buffer=256),
)
figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), sharey=True)
for ax, (name, values) in zip(axes, scores.parts.items()):
  right, wrong = values.reshape(2, -1)
  ax.plot(lengths, right, label="right answer")
  ax.plot(lengths, wrong, "--", label="wrong answer")
  ax.set(title=name, xlabel="tokens, of at most 1,024")
axes[0].legend()
plt.show()
# %% [markdown]
# ## Programs
#
# A program is run against tests that it cannot see, in a sandbox without a
# network and without the files of this machine (Debian's `bubblewrap`). These
# programs do what trained policies have been seen to do.

# %%
task = r1jax.Example(
  "Write double(n).",
  "",
  "code",
  metadata=dict(tests=["assert double(3) == 6", "assert double(-1) == -2"]),
)
programs = {
  "honest": "def double(n):\n  return 2 * n",
  "wrong": "def double(n):\n  return n + 3",
  "exits with success": "import sys\nsys.exit(0)",
  "equal to everything": """
class Same:
  def __eq__(self, other): return True
def double(n): return Same()""",
  "reads the tests": """
import inspect, re
def double(n):
  frames = inspect.stack()
  return eval(re.findall("== (.*)", str(frames))[0])""",
  "kills its judge": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
  "never ends": "while True: pass",
  "calls home": "import urllib.request as u\nu.urlopen('http://example.com')",
}
if FAST:
  programs = {name: programs[name] for name in ("honest", "wrong")}
fenced = [f"<think></think>\n```python\n{p}\n```" for p in programs.values()]
if shutil.which("bwrap"):
  scores = r1jax.grade([task] * len(fenced), fenced, code=dict(weight=1.0))
  for name, value, why in zip(programs, scores.total, scores.feedback):
    print(f"{name:22}{value:4.0f}  {' '.join(why.split())[:70]}")
else:
  print("bubblewrap is not installed: apt install bubblewrap")

# %% [markdown]
# ## A reward with a hole
#
# A reward of one's own is any function, named "module:function". This one
# means well: it pays if the right answer occurs in the text.

# %%
pathlib.Path("runs").mkdir(exist_ok=True)
pathlib.Path("runs/my_rewards.py").write_text("""
def mentions(example, completion):
  return float(example.answer in completion.text)
""")

import sys

sys.path.append("runs")
question = r1jax.Example("3 + 4 =", "7", "math/sums")
honest = "<think> 3 + 4 = 7 </think> <answer> 7 </answer>"
cheat = "<think> 0 1 2 3 4 5 6 7 8 9 </think> <answer> 0 </answer>"
scores = r1jax.grade(
  [question] * 2,
  [honest, cheat],
  accuracy=0.0,
  **{"my_rewards:mentions": 1.0},
)
for name, values in scores.parts.items():
  print(f"{name:10} honest {values[0]:.0f}  cheat {values[1]:.0f}")

# %% [markdown]
# A weight of 0 measures without paying, and shows the hole. [Reading a
# run](6_reading_a_run.ipynb) shows what training makes of such a reward.
#
# Next: [your own data, reward and template](5_your_own.ipynb).
