"""The doctor finds nothing wrong with what is right, and the rest in a line."""

import dataclasses
import json
import re

import pytest

from r1jax import config, hf
from r1jax.data import tokenizer
from r1jax.models.presets import preset
from r1jax.tools import checks, doctor, examination
from r1jax.training import policy

SIZES = preset(
  "tiny_deepseek",
  width=32,
  num_layers=2,
  dense_width=32,
  experts=dict(width=8, num_routed=4),
)
CONFIG = """
from ml_collections import ConfigDict

def get_config():
  c = ConfigDict()
  c.loop, c.seed, c.num_steps, c.template = "grpo", 0, 8, "r1_zero"
  c.mesh = dict(data=1)
  c.rollout_mesh = dict(data=1)
  c.model = dict(name="pretrained", path={folder!r})
  c.tokenizer = dict(path={folder!r})
  c.dataset = dict(name="problems", path={train!r}, split="all")
  c.rewards = dict(accuracy=1.0, format=1.0)
  c.grader = dict(num_workers=1, timeout=5.0)
  c.prompts_per_round, c.group_size, c.minibatches = 4, 2, 2
  c.sampling = dict(
    num_slots=8, decode_steps=8, prompt_tokens=64, max_tokens=16,
    temperature=0.9,
  )
  c.rows = dict(widths=(512,), shard_rows=2)
  c.advantage = dict(name="group_std")
  c.aggregation = dict(name="completion_mean")
  c.loss = dict(
    ratio="token",
    clip=dict(name="symmetric", epsilon=0.2),
    kl="k3",
    kl_coefficient=0.001,
    entropy_coefficient=0.0,
    correction=None,
  )
  c.kl_reward = dict(name="k1", coefficient=0.0)
  c.mask_truncated = False
  c.max_tokens = ()
  c.dynamic_sampling = dict(rounds=0)
  c.old = "sampler"
  c.mtp = "frozen"
  c.reference_every = c.checkpoint_every = 4
  c.router_bias_speed = 0.001
  c.teacher = dict()
  c.offload = ()
  c.peak_flops = None
  c.cpu_devices = 1
  c.max_skipped = 5
  c.optimizer = dict(
    learning_rate=1e-3, warmup_steps=0, decay_steps=0, final_share=1.0, b1=0.9,
    b2=0.95, weight_decay=0.1, max_grad_norm=1.0,
  )
  c.evaluation = dict(
    every=4, seed=1, problems=4, samples=2, problems_between=4,
    samples_between=2, test=dict(name="problems", path={test!r}, split="all"),
  )
  return c
"""


def write_problems(path, numbers, answer="{}"):
  rows = [
    dict(problem=f"What is {i} plus 1?", answer=answer.format(i + 1))
    for i in numbers
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


@pytest.fixture(scope="module")
def path(tmp_path_factory, write_tokenizer, random_params):
  """A config with which nothing is wrong."""
  tmp = tmp_path_factory.mktemp("doctor")
  words = write_tokenizer(tmp / "tokenizer")
  params = random_params(SIZES)
  hf.save(tmp / "model", SIZES, params, tokenizer=words, provenance={})
  paths = dict(
    folder=tmp / "model",
    train=write_problems(tmp / "train.jsonl", range(9)),
    test=write_problems(tmp / "test.jsonl", range(10, 14)),
  )
  file = tmp / "healthy.py"
  file.write_text(CONFIG.format(**{k: str(v) for k, v in paths.items()}))
  return file


def findings(path, overrides={}, *, until="memory"):
  """The lines of every check before `until`."""
  lines = []
  for name, line in doctor.examine(config.load(str(path), overrides)):
    if name == until:
      break
    lines.append((name, *line))
  return lines


def wrong(*args, **kwargs):
  return [
    f"{name}: {text}"
    for name, verdict, text in findings(*args, **kwargs)
    if verdict == examination.WRONG
  ]


@pytest.mark.slow
def test_nothing_is_wrong_with_a_healthy_run(path, python):
  done = python("-m", "r1jax", "doctor", f"--config={path}")
  assert done.returncode == 0, done.stdout + done.stderr
  assert "WRONG  " not in done.stdout and "Traceback" not in done.stderr
  for text in (
    "a round: 4 prompts x 2 = 8 completions, at most 128 tokens, in 2 updates",
    "8 steps = 4 rounds = 16 prompts, 1.78 of 9 problems",
    "train.jsonl:3: ",
    "EOS is 0 '<eos>'",
    "prompts begin with no BOS",
    "13 of 13 reference answers verify themselves",
    "0 arrays changed at learning rate 0",
    "nats between sampler and trainer",
    "with the template pass@1",
    "without the template pass@1",
    "nothing WRONG",
  ):
    assert text in done.stdout, f"{text}\n{done.stdout}"


def test_what_is_wrong_is_a_line_and_an_exit_code(path, python):
  done = python(
    "-m", "r1jax", "doctor", f"--config={path}", "--config.minibatches=3"
  )
  assert done.returncode == 1
  assert "Traceback" not in done.stdout + done.stderr
  (line,) = [x for x in done.stdout.splitlines() if x.startswith("WRONG")]
  assert "minibatches 3 does not divide prompts_per_round 4" in line
  done = python("-m", "r1jax", "doctor", f"--config={path}", "--confgi=1")
  assert done.returncode == 2 and "did you mean --config" in done.stderr


@pytest.mark.parametrize(
  "key, value, text",
  [
    ("template", "r1_zer", "unknown template 'r1_zer'"),
    ("sampling.prompt_tokens", 3, "train.jsonl:1: a prompt of"),
    ("rows.widths", (64,), "widest of rows.widths, 64; it must be at least"),
    ("dataset.path", "/no/where", "/no/where: no such file"),
    ("tokenizer.path", "/no/where", "/no/where holds no tokenizer"),
    ("group_size", 1, "group_size is 1"),
    ("rewards.accuracy", float("nan"), "weight must be a finite number"),
  ],
)
def test_one_wrong_setting_gives_one_line(path, key, value, text):
  (line,) = wrong(path, {key: value})
  assert text in line


def test_answers_that_do_not_verify_are_named(path, tmp_path):
  bad = r"any integer with $\mho(a)=0$ and $"
  file = write_problems(tmp_path / "bad.jsonl", range(20, 22), bad)
  lines = wrong(path, {"dataset.path": str(file)})
  assert len(lines) == 3
  assert "bad.jsonl:1: the answer" in lines[0]
  assert "4 of 6 reference answers" in lines[2]


def test_training_on_the_test_problems_is_noticed(path, tmp_path):
  file = write_problems(tmp_path / "leak.jsonl", range(8, 12))
  (line,) = wrong(path, {"dataset.path": str(file)})
  assert (
    "2 of 4 test problems are also in training, such as test.jsonl:1" in line
  )


def test_an_eos_that_stands_in_the_prompt_is_noticed(
  path, tmp_path, write_tokenizer
):
  folder = write_tokenizer(tmp_path, eos="t")
  lines = wrong(path, {"tokenizer.path": str(folder)}, until="problems")
  assert len(lines) == 4 and "the prompt contains EOS" in lines[0]
  assert "EOS is 0 in the model's config.json" in lines[3]


def test_it_is_said_with_what_prompts_begin(path, tmp_path, write_tokenizer):
  folder = write_tokenizer(tmp_path)
  names = dict(eos_token="<eos>", bos_token="!", add_bos_token=True)
  (folder / "tokenizer_config.json").write_text(json.dumps(names))
  lines = findings(path, {"tokenizer.path": str(folder)}, until="problems")
  (text,) = [text for *_, text in lines if "prompts begin" in text]
  assert re.fullmatch(r"prompts begin with \d+ '!' \(tokenizer.bos\)", text)
  assert not any(verdict == examination.WRONG for _, verdict, _ in lines)


def test_an_eos_that_the_model_does_not_know_is_noticed(path, tmp_path):
  folder = tmp_path / "model"
  folder.mkdir()
  for file in (path.parent / "model").iterdir():
    (folder / file.name).write_bytes(file.read_bytes())
  settings = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(
    json.dumps(settings | {"eos_token_id": 7})
  )
  (line,) = wrong(path, {"model.path": str(folder)}, until="problems")
  assert "EOS is 7 in the model's config.json" in line


def test_characters_that_the_tokenizer_lacks_are_noticed(path, tmp_path):
  texts = ["Why not? <think> </think> <answer> </answer>"] * 9
  tokenizer.fit(texts, tmp_path / "tokenizer.model", word_share=1.0)
  lines = wrong(path, {"tokenizer.path": str(tmp_path)}, until="problems")
  assert len(lines) == 4 and "the tokenizer cannot represent it" in lines[0]
  assert "EOS is 0 in the model's config.json" in lines[3]


def test_a_model_of_another_vocabulary_is_noticed(
  path, tmp_path, random_params
):
  sizes = dataclasses.replace(SIZES, vocab_size=300)
  params = random_params(sizes)
  words = path.parent / "tokenizer"
  hf.save(tmp_path, sizes, params, tokenizer=words, provenance={})
  (line,) = wrong(path, {"model.path": str(tmp_path)}, until="problems")
  assert "ids, but the model only 300" in line


def test_a_run_that_does_not_fit_is_not_tried(path, monkeypatch):
  monkeypatch.setattr(checks.memory, "limit", lambda: 1000)
  lines = wrong(path, until="plain")
  assert len(lines) == 2
  assert "GiB of" in lines[0] and "not enough memory" in lines[1]


@pytest.mark.soak
def test_a_trainer_that_differs_from_the_sampler_is_noticed(path, monkeypatch):
  honest = policy.policy_forward

  def tempered(model, vocab_size, temperature, *rows):
    return honest(model, vocab_size, 1.1 * temperature, *rows)

  monkeypatch.setattr(policy, "policy_forward", tempered)
  lines = wrong(path, until="plain")
  assert any("nats between sampler and trainer" in line for line in lines)
  assert any("of the mean ratio from 1" in line for line in lines)


def test_supervised_fine_tuning_is_examined_too():
  lines = findings("experiments/demo_base.py", until="")
  assert not [line for line in lines if line[1] == examination.WRONG]
  text = "\n".join(text for *_, text in lines)
  assert "a batch: " in text and "GiB of" in text


def test_conversations_that_do_not_fit_a_row_are_noticed(tmp_path):
  turns = lambda answer: [
    dict(role="user", content="1 + 1"),
    dict(role="assistant", content=answer),
  ]
  rows = [dict(messages=turns(answer)) for answer in ("2", "3" * 500)]
  (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
  c = config.load("experiments/demo_base.py", {"batch_examples": 2})
  with c.unlocked():
    c.dataset = dict(name="conversations", path=str(tmp_path))
  lines = [*checks.documents(examination.Context(c))]
  (note,) = [line for line in lines if line.verdict == examination.NOTE]
  assert "4 texts of 4 batches are left out" in note.text
  with c.unlocked():
    c.tokenizer = dict(path=str(tmp_path))
  with pytest.raises(ValueError, match="holds no tokenizer.model"):
    [*checks.documents(examination.Context(c))]


def test_the_last_answer_is_found_without_tags():
  assert checks.last_answer("1 + 1\nAnswer: 2") == "2"
  assert checks.last_answer("so\nit is 3\n") == "it is 3"
  assert checks.last_answer("") == ""
