r"""Distillation of DeepSeek-R1 to six students, by SFT without RL.

    r1jax plan --config=experiments/distill.py:qwen_32b --topology=v5p:4x8x8

From the paper (arXiv:2501.12948v2, app. B.4.3): the students and their peak
learning rates, a cosine decay to a tenth of the peak, rows of 32,768 tokens,
and batches of 64. Two epochs of the paper's 800,000 demonstrations, which are
not published, are 25,000 updates. Ours, because the paper gives no values:
AdamW with the pre-training values of V3, no warm-up, bfloat16 activations with
float32 master weights, and the mesh.

The students of 1.5B and 7B differ from Qwen2.5-Math, which they start from, as
their released configs do: they have 131,072 positions instead of 4,096, and the
output layer of the 1.5B is not tied to its embedding.

Not run: as it is, a student has random weights and reads `r1jax.data.worked`.
The sizes are those of the paper, so that `r1jax plan` is meaningful.
"""

from ml_collections import ConfigDict

# Name: (preset, peak learning rate, mesh.fsdp, mesh.tensor)
STUDENTS = {
  "qwen_1_5b": ("r1-distill-qwen-1.5b", 1e-4, 4, 1),
  "qwen_7b": ("r1-distill-qwen-7b", 8e-5, 4, 1),
  "qwen_14b": ("qwen2.5-14b", 7e-5, 8, 1),
  "qwen_32b": ("qwen2.5-32b", 6e-5, 8, 1),
  "llama_8b": ("llama-3.1-8b", 5e-5, 4, 1),
  "llama_70b": ("llama-3.3-70b", 2e-5, 8, 1),
}
VARIANTS = tuple(STUDENTS)


def get_config(variant="qwen_1_5b"):
  """The config of the run."""
  if variant not in STUDENTS:
    raise ValueError(f"unknown variant {variant!r}; there is {VARIANTS}")
  name, rate, fsdp, tensor = STUDENTS[variant]

  c = ConfigDict()
  c.loop = "sft"
  c.seed = 0
  c.template = "plain"  # Of prompts; a document has none.
  c.num_steps = 25_000
  c.metrics_every = 10
  c.checkpoint_every = 500

  c.cpu_devices = 1  # Not used on a pod.
  # Few long rows, of which each is split over 8 chips: 64 texts fill them.
  c.mesh = dict(data=-1, fsdp=fsdp, context=8, tensor=tensor)
  c.model = dict(
    name="fresh", preset_name=name, seed=0, compute_dtype="bfloat16"
  )
  c.tokenizer = dict(documents=20_000, word_share=0.002)
  c.dataset = dict(
    name="worked",
    size=800_000,
    seed=0,
    template_share=1.0,
    template_styles=dict(guess=0.0, short=0.0, long=1.0),
    other_styles=dict(guess=0.0, short=0.0, long=1.0),
    wrong_guess=0.0,
    mistake=0.0,
    missed_check=0.0,
    malformed=0.0,
    chinese_share=0.0,
  )
  c.batch_examples = 64
  c.rows = dict(widths=(32_768, 16_384, 8_192, 4_096), shard_rows=1)

  c.loss = dict(mtp=0.0, balance=0.0)
  c.router_bias_speed = 0.0
  c.offload = ()  # "optimizer" is kept in host memory.
  c.optimizer = dict(
    learning_rate=rate,
    warmup_steps=0,
    decay_steps=25_000,
    final_share=0.1,
    b1=0.9,
    b2=0.95,
    weight_decay=0.1,
    max_grad_norm=1.0,
  )
  return c
