"""Problems get their tests once, whatever the model that writes them does."""

import json

import ml_collections
import pytest
from judge_server import cuts, fails, serving

from r1jax import config as configs
from r1jax import data, rewards
from r1jax.data import shard_writer
from r1jax.rewards.judges import endpoint
from r1jax.training import code_tests
from r1jax.types import Completion

pytest.importorskip("openai")

GENERATOR = """
import random
random.seed(int(input()))
print(random.randrange(100), random.randrange(100))
"""


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setattr(endpoint, "BACKOFF", 0.01)
  with serving(monkeypatch) as server:
    server.rule = lambda asked: f"Here it is:\n```python{GENERATOR}```\n"
    yield server


def line(number, **changes):
  right = f"a, b = map(int, input().split())\nprint(a + b + {number})"
  wrong = f"a, b = map(int, input().split())\nprint(a - b + {number})"
  row = dict(
    problem=f"Add two numbers, and {number}.",
    tests=[dict(input="1 2", output=str(3 + number))],
    right=[right],
    wrong=[wrong],
  )
  return json.dumps(row | changes) + "\n"


@pytest.fixture
def config(server, tmp_path):
  path = tmp_path / "p.jsonl"
  path.write_text("".join(map(line, range(3))))
  c = ml_collections.ConfigDict()
  c.loop = "code_tests"
  c.cpu_devices = 1
  c.dataset = dict(name="problems", path=str(path), domain="code")
  c.writer = dict(base_url=server.base_url, model="m", deadline=20.0)
  c.generators = 1
  c.tests = dict(seeds=2, max_tests=3, seconds=5.0, sandbox="none")
  c.problems_per_shard, c.workers = 2, 1
  return c


def run(config, workdir):
  configs.check(config)
  return code_tests.train(config, str(workdir), sinks=())


def test_problems_with_tests_are_a_dataset_for_the_code_reward(
  config, server, tmp_path
):
  server.script = [fails(500), cuts, fails(429, retry_after="0")]
  summary = run(config, tmp_path / "w")
  assert summary == dict(
    problems=3,
    kept=3,
    tests=6,
    generators=9,
    inputs=6,
    valid=6,
    wrong=3,
    caught=3,
  )
  kept = tmp_path / "w" / shard_writer.KEPT
  assert shard_writer.finished(kept, "jsonl") == 2
  examples = [
    example
    for number in range(2)
    for example in data.load(
      name="problems",
      path=shard_writer.path_of(kept, number, "jsonl"),
      domain="code",
    )
  ]
  assert [e.prompt for e in examples] == [
    f"Add two numbers, and {number}." for number in range(3)
  ]
  source = "a, b = map(int, input().split())\nprint(a + b + 1)"
  text = Completion(f"</think>\n```python\n{source}\n```")
  spec = dict(accuracy=dict(weight=1.0, sandbox="none"))
  scores = rewards.score(examples, [text] * 3, **spec)
  assert scores.total.tolist() == [0.0, 1.0, 0.0]
  # Each problem was shown as material, with each kind of generator.
  kinds = {asked["messages"][0]["content"] for asked in server.asked}
  assert len(kinds) == len(code_tests.KINDS)

  before = len(server.asked)
  assert run(config, tmp_path / "w") == summary
  assert len(server.asked) == before


def test_a_problem_whose_generators_are_useless_is_dropped(
  config, server, tmp_path
):
  good = server.rule
  server.rule = lambda asked: (
    "I cannot." if "and 1." in str(asked["messages"]) else good(asked)
  )
  config.writer.attempts = 1
  summary = run(config, tmp_path / "w")
  assert summary["kept"] == 2 and summary["generators"] == 6
  path = shard_writer.path_of(tmp_path / "w" / shard_writer.DROPPED, 0, "jsonl")
  (row,) = map(json.loads, path.read_text().splitlines())
  assert row["problem"] == "Add two numbers, and 1."
  assert row["tests"] == [] and row["provenance"]["generators"] == 0


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(right=[]), "^p.jsonl:2: 'right' must be a list of programs"),
    (dict(wrong="print(1)"), "^p.jsonl:2: 'wrong' must be a list of programs"),
    (dict(wrong=[7]), "^p.jsonl:2: a program in 'wrong' is no text"),
    (dict(language="cobol"), "^p.jsonl:2: unknown language 'cobol'"),
  ],
)
def test_a_line_without_submissions_is_named(
  config, tmp_path, changes, message
):
  path = tmp_path / "p.jsonl"
  path.write_text(line(0) + line(1, **changes))
  with pytest.raises(ValueError, match=message):
    run(config, tmp_path / "w")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"generators": 0}, "generators is 0; it must be at least 1"),
    ({"tests": dict(seeds=0, max_tests=1)}, "tests.seeds is 0"),
    ({"tests": dict(max_tests=1)}, "'tests.seeds' is missing"),
  ],
)
def test_a_config_with_a_wrong_number_is_refused(config, changes, message):
  plain = config.to_dict()
  with pytest.raises(ValueError, match=message):
    configs.check(ml_collections.ConfigDict(plain | changes))
