"""A run from Python: the README's lines, from another folder."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

import r1jax

ROOT = pathlib.Path(__file__).parents[1]
SMALL = {
  "prompts_per_round": 4,
  "minibatches": 2,
  "evaluation.problems": 4,
  "evaluation.samples": 2,
}


def python(*arguments, folder):
  env = os.environ | {
    "PYTHONPATH": str(ROOT),
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # Its programs run once.
  }
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=folder,
    env=env,
    capture_output=True,
    text=True,
    timeout=500,
  )


def test_importing_it_imports_nothing_else(tmp_path):
  code = (
    "import sys, r1jax; r1jax.Example; print({'jax', 'absl'} & {*sys.modules})"
  )
  assert python("-c", code, folder=tmp_path).stdout == "set()\n"


def test_all_that_it_offers_is_there():
  assert all(getattr(r1jax, name) for name in r1jax.__all__)
  with pytest.raises(AttributeError, match="no attribute 'trian'"):
    _ = r1jax.trian


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(template="r1_zer"), "did you mean 'r1_zero'"),
    (dict(rewards={"none:reward": 1.0}), "No module named 'none'"),
    (dict(dataset=dict(name="none:load")), "No module named 'none'"),
    ({"evaluation.test.name": "reasonin_gym"}, "did you mean 'reasoning_gym'"),
    ({"evaluation.test.sise": 3}, "did you mean 'evaluation.test.size'"),
  ],
)
def test_what_is_wrong_with_a_config_is_said_before_anything_runs(
  changes, message, tmp_path
):
  with pytest.raises(ValueError, match=message):
    config = r1jax.load_config(str(ROOT / "experiments/demo.py"), changes)
    r1jax.train(config, str(tmp_path / "run"))
  assert not [*tmp_path.iterdir()]


def test_the_loops_options_are_checked(tmp_path):
  config = r1jax.load_config(str(ROOT / "experiments/demo.py"))
  with pytest.raises(ValueError, match="no --verbose"):
    r1jax.train(config, str(tmp_path / "run"), verbose=True)


@pytest.mark.slow
def test_the_lines_of_the_readme_train_from_another_folder(tmp_path):
  (code,) = re.findall(
    r"```python\n(# sums.py.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
  )
  code = code.replace("experiments/demo.py", str(ROOT / "experiments/demo.py"))
  code = code.replace('{"num_steps": 4}', repr({"num_steps": 4} | SMALL))
  (tmp_path / "sums.py").write_text(code)
  run = python("sums.py", folder=tmp_path)
  assert run.returncode == 0, run.stderr
  lines = (tmp_path / "runs/sums/metrics.jsonl").read_text().splitlines()
  rounds = [row for row in map(json.loads, lines) if "round" in row]
  assert [row["step"] for row in rounds] == [2, 4]
  assert 0 < rounds[-1]["reward/brief/mean"] <= 1
  assert "reward/sums/mean" in rounds[-1] or "sums" in str(rounds[-1])
  # Started again, it has nothing left to do.
  again = python("sums.py", folder=tmp_path)
  assert again.returncode == 0, again.stderr
  assert len(
    (tmp_path / "runs/sums/metrics.jsonl").read_text().splitlines()
  ) == (len(lines))


LINES = 15  # That a new user writes, at most.


@pytest.mark.reference
def test_the_lines_of_the_docs_go_from_a_file_to_transformers(tmp_path):
  """In a folder of one's own: data, reward, training, evaluation, export."""
  page = (ROOT / "docs/own_data.md").read_text()
  reward, lines = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
  written = [*reward.splitlines(), *lines.splitlines()]
  written = [x for x in written if x.strip() and not x.startswith("#")]
  assert len(written) <= LINES
  (tmp_path / "my_rewards.py").write_text(reward)
  with open(tmp_path / "mine.jsonl", "w") as file:
    for n in range(60):
      row = {"question": f"{n % 7} + {n} =", "answer": str(n % 7 + n)}
      file.write(json.dumps(row) + "\n")
  small = SMALL | {
    "num_steps": 2,
    "group_size": 4,
    "cpu_devices": 1,
    "loss.kl_coefficient": 0.0,
    "sampling.num_slots": 16,
    "sampling.prompt_tokens": 64,
    "sampling.max_tokens": 48,
  }
  lines = lines.replace(
    "experiments/demo.py", str(ROOT / "experiments/demo.py")
  ).replace('{"num_steps": 20}', repr(small))
  (tmp_path / "run.py").write_text(lines)
  run = python("run.py", folder=tmp_path)
  assert run.returncode == 0, run.stderr
  assert "'pass@1'" in run.stdout
  (row,) = (
    row
    for row in map(
      json.loads,
      (tmp_path / "runs/mine/metrics.jsonl").read_text().splitlines(),
    )
    if "round" in row
  )
  assert "reward/brief/mean" in row

  import torch
  import transformers

  exported = str(tmp_path / "exported")
  theirs = transformers.AutoModelForCausalLM.from_pretrained(exported)
  ours = r1jax.load(exported)
  ids = ours.tokenizer.encode("6 + 7 = 13")
  with torch.no_grad():
    logits = theirs(torch.tensor([ids])).logits[0]
  logprobs = torch.log_softmax(
    logits[:, : ours.tokenizer.vocab_size].float(), -1
  )
  expected = [logprobs[t, token].item() for t, token in enumerate(ids[1:])]
  (result,) = ours.logprobs([ids])
  assert result[1:].tolist() == pytest.approx(expected, abs=1e-3)
  (trained,) = r1jax.load(tmp_path / "runs/mine").logprobs([ids])
  assert result.tolist() == trained.tolist()
