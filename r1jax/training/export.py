"""The model that a run leaves: WORKDIR/model, in Hugging Face layout.

A run that has trained an adapter leaves WORKDIR/adapter, too, in that of PEFT.
"""

import pathlib
import subprocess

import ml_collections

from r1jax import hf
from r1jax.models.config import ModelConfig
from r1jax.training import lora
from r1jax.types import TrainState


def export(
  workdir: str,
  config: ml_collections.ConfigDict,
  model: ModelConfig,
  state: TrainState,
  tokenizer: str | pathlib.Path,
  frozen: lora.Frozen,
) -> None:
  """Writes the model of a run. All processes of a job must call it.

  Args:
    workdir: of the run.
    config: of the run, which is recorded beside the model.
    model: config of the model.
    state: with its parameters.
    tokenizer: the directory whose tokenizer is copied.
    frozen: the model of an adapter.
  """
  if frozen.lora is not None:
    folder = pathlib.Path(workdir) / "adapter"
    lora.save(folder, frozen.lora, state.params, config.model.path)
  hf.save(
    pathlib.Path(workdir) / "model",
    model,
    frozen.full(state.params),
    tokenizer=tokenizer,
    provenance=dict(
      config=config.to_dict(), step=int(state.step), commit=commit()
    ),
  )


def commit() -> str | None:
  """The git commit of this package's source tree; None outside of git."""
  folder = pathlib.Path(__file__).parent
  try:
    result = subprocess.run(
      ["git", "-C", str(folder), "rev-parse", "HEAD"],
      capture_output=True,
      text=True,
      timeout=10,
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
  return result.stdout.strip() or None
