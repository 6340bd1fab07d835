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
# # 3. Inside the model
#
# What makes DeepSeek-V3 (arXiv:2412.19437) different from a plain transformer,
# on a model small enough to look into: a cache of latents, experts whose load a
# bias balances, and blocks that predict the token after the next.

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
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from r1jax.models import transformer
from r1jax.models.moe import rebalance, route
from r1jax.models.presets import PRESETS
from r1jax.models.rows import mtp_targets, pack_rows
from r1jax.models.weights import sizes

plt.rcParams |= {"figure.dpi": 80, "font.size": 10, "axes.grid": True}
plt.rcParams |= {"grid.alpha": 0.3, "figure.constrained_layout.use": True}

# %% [markdown]
# ## What is cached
#
# Attention reads the keys and values of all earlier tokens. Multi-head latent
# attention caches one latent and one rotary key for all heads together. The
# table is what a token takes, in bfloat16.

# %%
print(f"{'model':18}{'parameters':>17}{'values/layer':>14}{'KiB/token':>11}")
names = ("deepseek_v3", "deepseek_v2_lite", "qwen2.5-math-7b", "qwen2.5-32b")
for name in names if not FAST else names[:2]:
  config = PRESETS[name]
  count = sizes(config)["total"]
  cached = config.cache_size
  kib = cached * config.num_layers * 2 / 1024
  print(f"{name:18}{count:17,}{cached:14,}{kib:11.1f}")
attention = PRESETS["deepseek_v3"].attention
per_head = attention.num_heads * (attention.key_size + attention.value_size)
print(
  f"\nDeepSeek-V3 with a key and a value per head would cache {per_head:,} "
  f"values per layer: {per_head / PRESETS['deepseek_v3'].cache_size:.0f} times "
  "as many."
)

# %% [markdown]
# ## The cache gives the same numbers
#
# The cached and the uncached pass of the shipped model, over a text of its own.

# %%
from r1jax.models import cache as caches

model = r1jax.load()
net, params = model.transformer, model.params
config = r1jax.load_config("experiments/demo.py")
data = r1jax.load_dataset(**config.dataset.to_dict())
prompts = [data[i] for i in range(4 if FAST else 32)]
samples = model.sample(prompts, max_tokens=48)
longest = max(samples.completions, key=lambda each: each.num_tokens)
text = model.tokenizer.encode(longest.text)
tokens = jnp.asarray([text])

forward = jax.jit(transformer.forward, static_argnums=0, static_argnames="mtp")
whole = forward(net, params, pack_rows(tokens))

extend = jax.jit(transformer.extend, static_argnums=0)
cache, parts = caches.empty(net.config, 1, tokens.shape[1]), []
for t in range(tokens.shape[1]):
  hidden, cache = extend(net, params, tokens[:, t : t + 1], cache)
  parts.append(hidden)
difference = jnp.abs(jnp.concatenate(parts, 1) - whole.hidden).max()
print(f"{tokens.shape[1]} tokens; largest difference {difference:.1e}")

# %% [markdown]
# ## Experts
#
# Each token goes to 2 of 8 experts in every layer. The colours are the experts
# that the router of each layer gave the tokens of that text.

# %%
chosen = np.asarray(whole.experts)[:, 0]  # [L, T, k]
shown = min(28, chosen.shape[1])
figure, ax = plt.subplots(figsize=(9, 2.2))
first = chosen[:, :shown, 0]
ax.imshow(first, cmap="tab10", vmin=0, vmax=9, aspect="auto")
for (layer, token), expert in np.ndenumerate(first):
  ax.text(token, layer, expert, ha="center", va="center", color="white")
decode = lambda t: model.tokenizer.decode([t]).replace("\n", "\\n")
ax.set_xticks(range(shown), [decode(t) for t in text[:shown]], rotation=60)
ax.set(yticks=range(len(first)), ylabel="layer", title="best expert by token")
ax.grid(False)
plt.show()

# %% [markdown]
# ## Load, and the bias that balances it
#
# The share of the tokens of 32 texts that each expert processed. An even load
# is one eighth. The last row is the block of multi-token prediction, below.

# %%
rollout = samples.rollout
start = rollout.prompt_lengths[:, None]
end = start + rollout.lengths  # Of a text: its prompt, then its completion.
rows = np.zeros((len(prompts), end.max()), np.int32)
for i, row in enumerate(rows):
  row[: end[i, 0]] = [
    *rollout.prompts[i, : start[i, 0]],
    *rollout.completions[i, 0, : rollout.lengths[i, 0]],
  ]
packed = pack_rows(rows)
ran = forward(net, params, packed, mtp=True)
load = np.asarray(ran.expert_load)
figure, ax = plt.subplots(figsize=(6, 2.2))
share = load / load.sum(-1, keepdims=True)
image = ax.imshow(share, cmap="viridis", vmin=0)
ax.set(xlabel="expert", ylabel="layer", yticks=range(len(share)))
ax.grid(False)
figure.colorbar(image, label="share of tokens")
plt.show()
# %% [markdown]
# V3 has no auxiliary loss that pulls on the gradient. After each step a bias,
# added to the scores only when experts are chosen, falls for experts with more
# than the mean load and rises for the others. Here is that rule alone, on a
# router that begins lopsided:

# %%
experts = net.config.experts
rng = np.random.default_rng(0)
preference = rng.normal(0, 1.5, experts.num_routed)
logits = jnp.asarray(rng.normal(0, 1, (512, experts.num_routed)) + preference)
bias, history = jnp.zeros(experts.num_routed), []
for _ in range(80):
  indices = route(logits, bias, experts).indices
  counts = jnp.bincount(indices.reshape(-1), length=experts.num_routed)
  history.append(np.asarray(counts / counts.sum()))
  bias = rebalance(bias, counts.astype(jnp.float32), 0.01)
figure, ax = plt.subplots(figsize=(6, 2.6))
ax.plot(history)
ax.axhline(1 / experts.num_routed, color="black", linestyle="--")
ax.set(xlabel="steps", ylabel="share of tokens", title="one line an expert")
plt.show()
# %% [markdown]
# ## Predicting the token after the next
#
# A multi-token prediction block gets the hidden state of token t and the
# embedding of token t + 1, and predicts token t + 2. How often is the most
# probable token of each the right one, on the model's own texts?

# %%
guess = jnp.argmax(transformer.logits(params, ran.hidden), -1)
place = np.arange(rows.shape[1])
written = (place >= start) & (place < end - 1)
print(f"next token:       {np.mean((guess == packed.targets)[written]):.2f}")
targets, counted = mtp_targets(packed)
counted &= (place >= start) & (place < end - 2)
guess = jnp.argmax(transformer.logits(params, ran.mtp_hidden[0]), -1)
print(f"the one after it: {np.mean((guess == targets)[counted]):.2f}")

# %% [markdown]
# Next: [rewards, and how policies cheat](4_rewards.ipynb).
