"""Adapters in PEFT's layout, as `peft` reads and applies them."""

import jax
import numpy as np
import pytest

from r1jax import hf
from r1jax.models import transformer
from r1jax.models.presets import preset
from r1jax.parallel.mesh import make_mesh
from r1jax.training import lora, models, state

pytestmark = [
  pytest.mark.reference,
  pytest.mark.filterwarnings("ignore::FutureWarning"),  # Of peft itself.
]

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
TOKENS = np.array([[3, 5, 7, 9, 11, 4, 17, 30]], np.int32)


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_peft_applies_the_adapter_that_we_write(
  family, random_params, tmp_path
):
  config = preset(f"tiny_{family}", vocab_size=64, rope_scaling=None)
  hf.save(tmp_path / "base", config, random_params(config))
  initial = models.initial(
    "lora", path=str(tmp_path / "base"), rank=3, alpha=6.0, dtype="float32"
  )
  frozen = state.make_frozen(make_mesh(data=1), initial)
  rng = np.random.default_rng(0)
  adapter = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.2,
    initial.make(None),
  )
  lora.save(tmp_path / "adapter", initial.adapter, adapter, "base")
  full = frozen.full(adapter)
  hidden = transformer.forward(
    transformer.Transformer(initial.config),
    full,
    transformer.pack_rows(TOKENS),
  ).hidden
  expected = np.asarray(transformer.logits(full, hidden))

  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "base", dtype=torch.float32
  ).eval()
  tokens = torch.tensor(TOKENS, dtype=torch.long)
  with torch.no_grad():
    before = theirs(tokens).logits.numpy()
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")
    found = adapted.eval()(tokens).logits.numpy()
    merged = adapted.merge_and_unload()(tokens).logits.numpy()
  assert np.abs(found - before).max() > 0.1
  np.testing.assert_allclose(found, expected, atol=2e-4)
  np.testing.assert_allclose(merged, expected, atol=2e-4)
