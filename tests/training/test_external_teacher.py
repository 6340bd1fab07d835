"""Samples from a server that hangs, fails, cuts replies or sends nonsense."""

import collections
import contextlib
import json
import pathlib
import threading

import ml_collections
import pytest
from judge_server import cuts, fails, hangs, resets, sends, serving

from r1jax import config as configs
from r1jax import data
from r1jax.data import jsonl, shard_writer
from r1jax.rewards.judges import endpoint
from r1jax.training import external_teacher as teacher
from r1jax.training import generate
from r1jax.types import Completion, Example

pytest.importorskip("openai")

ROOT = pathlib.Path(__file__).parents[2]
GSM8K = ROOT.parent / "shared" / "data" / "train" / "math_gsm8k_train.jsonl"
GARBAGE = (
  "",
  "not json",
  "[]",
  "{}",
  '{"choices": []}',
  '{"choices": [{"message": null}]}',
  '{"choices": [{"message": {"content": 7}}]}',
  '{"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}',
  '{"choices": [{"message": {"content": "x"}, "finish_reason": "odd"}]}',
  '{"choices": {"0": 1}}',
)


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setattr(endpoint, "BACKOFF", 0.01)
  with serving(monkeypatch) as server:
    server.rule = lambda asked: solution(asked["messages"][-1]["content"])
    yield server


def solution(question):
  """A right sample; no two problems have the same."""
  number = int(question.split()[1])
  return f"<think>{number} and one more</think>It is \\boxed{{{number + 1}}}."


def sums(*, size):
  return [
    Example(f"Add {i} and one.", str(i + 1), "math/toy", f"toy:{i + 1}")
    for i in range(size)
  ]


@pytest.fixture
def config(server, monkeypatch):
  """7 problems x 2 samples of a teacher, in shards of 3 problems."""
  monkeypatch.setitem(data.DATASETS, "sums", sums)
  # Graders need no processes of their own here.
  no_pool = lambda **_: contextlib.nullcontext()
  monkeypatch.setattr(generate, "GraderPool", no_pool)
  c = ml_collections.ConfigDict()
  c.loop = "generate"
  c.seed, c.cpu_devices, c.template = 0, 1, "{question}"
  c.mesh = c.model = c.tokenizer = c.sampling = c.rewriter = None
  c.teacher = dict(
    base_url=server.base_url, model="m", deadline=20.0, attempts=3
  )
  c.dataset = dict(name="sums", size=7)
  c.decontamination = dict(against={}, size=10)
  c.samples, c.prompts_per_shard, c.format = 2, 3, "jsonl"
  c.rewards = dict(accuracy=1.0, thought=0.0)
  c.keep = dict(accuracy=1.0, thought=1.0)
  c.grader = dict(
    num_workers=1, timeout=60.0, preload=("r1jax.rewards",), canaries=()
  )
  return c


def run(config, workdir):
  configs.check(config)
  return generate.train(config, str(workdir), sinks=())


def rows(workdir, *folders):
  return [
    row
    for folder in folders or (shard_writer.KEPT, shard_writer.DROPPED)
    for path in sorted((workdir / folder).glob("*.jsonl"))
    for _, row in jsonl.read(path)
  ]


def files(workdir):
  return {
    f"{folder}/{path.name}": path.read_bytes()
    for folder in (shard_writer.KEPT, shard_writer.DROPPED)
    for path in sorted((workdir / folder).iterdir())
  }


def questions(server):
  return [asked["messages"][-1]["content"] for asked in server.asked]


def test_every_sample_comes_once_whatever_the_server_does(
  config, server, tmp_path
):
  straight = run(config, tmp_path / "straight")
  assert straight["samples"] == 14 == len({*ids(tmp_path / "straight")})
  # Equal samples of a problem are kept once.
  assert straight["kept"] == 7 and straight["dropped"]["distinct"] == 7
  assert len(server.asked) == 14

  server.script = [
    fails(429, retry_after="0"),
    fails(500),
    cuts,
    resets,
    hangs,
    *(sends(body) for body in GARBAGE),
    fails(503),
  ]
  config.teacher.attempts = 20
  # What hangs ends without a reply.
  threading.Timer(0.5, server.released.set).start()
  assert run(config, tmp_path / "rough") == straight
  assert stripped(tmp_path / "rough") == stripped(tmp_path / "straight")


def ids(workdir):
  return sorted(row["id"] for row in rows(workdir))


def stripped(workdir):
  """All rows, without the hash of a config that differs in its patience."""
  found = rows(workdir)
  for row in found:
    del row["provenance"]["config"]
  return found


def test_a_run_goes_on_with_what_has_not_come_yet(config, server, tmp_path):
  straight = run(config, tmp_path / "straight")
  server.asked.clear()
  config.teacher.attempts = 1
  good = server.rule

  def rule(asked):
    if "Add 4 " in str(asked["messages"]):
      raise ConnectionError
    return good(asked)

  server.rule = rule
  with pytest.raises(ValueError) as error:
    run(config, tmp_path / "stopped")
  message = str(error.value)
  assert "\n" not in message
  assert "has not replied to 2 of 6 requests, first for 'toy:5'" in message
  assert (
    shard_writer.finished(tmp_path / "stopped" / shard_writer.KEPT, "jsonl")
    == 1
  )

  server.rule = good
  before = len(server.asked)
  assert run(config, tmp_path / "stopped") == straight
  again = questions(server)[before:]
  assert sorted(again) == sorted(
    ["Add 4 and one."] * 2 + ["Add 6 and one."] * 2
  )
  assert stripped(tmp_path / "stopped") == stripped(tmp_path / "straight")
  assert not [*(tmp_path / "stopped" / generate.REPLIES).iterdir()]


def test_a_share_of_samples_may_be_missing_if_the_config_says_so(
  config, server, tmp_path
):
  good = server.rule
  server.rule = lambda asked: "" if "Add 1 " in str(asked) else good(asked)
  config.teacher.max_failed = 0.4
  summary = run(config, tmp_path / "w")
  assert summary["samples"] == 14 and summary["kept"] == 6
  (first, second) = (
    row
    for row in rows(tmp_path / "w", shard_writer.DROPPED)
    if not row["provenance"]["filters"]["ended"]
  )
  assert (first["id"], second["id"]) == ("1/toy:2#0", "1/toy:2#1")
  assert first["messages"][1]["content"] == ""


def test_a_refusal_is_no_reason_to_wait(config, server, tmp_path):
  server.script = [fails(401)] * 6
  with pytest.raises(ValueError, match="has not replied to 6 of 6 requests"):
    run(config, tmp_path / "w")
  assert len(server.asked) == 6


def test_shots_and_the_system_message_come_before_the_question(
  config, server, tmp_path
):
  shots = tmp_path / "shots.jsonl"
  conversation = [
    dict(role="user", content="Add 1 and 1."),
    dict(role="assistant", content="<think>two</think>\\boxed{2}"),
  ]
  shots.write_text(json.dumps(dict(messages=conversation)) + "\n")
  config.teacher.update(
    system="Think.", shots=str(shots), parameters=dict(max_tokens=5)
  )
  config.template = "{question} Box it."
  run(config, tmp_path / "w")
  asked = server.asked[0]
  system, *turns, question = asked["messages"]
  assert system == dict(role="system", content="Think.")
  assert turns == conversation and asked["max_tokens"] == 5
  assert question["role"] == "user"
  assert question["content"].endswith("and one. Box it.")
  # A sample holds the question alone, as SFT puts its own template around it.
  assert {row["messages"][0]["content"] for row in rows(tmp_path / "w")} == {
    example.prompt for example in sums(size=7)
  }

  shots.write_text(json.dumps(dict(messages=conversation)) + "\n\n{}\n")
  with pytest.raises(ValueError, match=f"^{shots}:3: 'messages' must be one"):
    run(config, tmp_path / "w")
  config.teacher.shots = ""
  with pytest.raises(ValueError, match="teacher.shots is not set"):
    run(config, tmp_path / "w")


def reply(**message):
  finish = message.pop("finish_reason", "stop")
  choice = dict(index=0, message=message, finish_reason=finish)
  usage = dict(completion_tokens=9, prompt_tokens=1, total_tokens=10)
  return json.dumps(
    dict(
      id="1",
      object="chat.completion",
      created=0,
      model="m",
      choices=[choice],
      usage=usage,
    )
  )


@pytest.mark.parametrize("field", teacher.THOUGHTS)
def test_a_thought_that_the_server_took_out_is_put_back(
  server, tmp_path, field
):
  server.script = [
    sends(reply(role="assistant", content="It is 1.", **{field: " none\n"})),
    sends(reply(role="assistant", content=None, **{field: "I"},
                finish_reason="length")),
  ]  # fmt: skip
  made = teacher.make_teacher(
    base_url=server.base_url, model="m", concurrency=1
  )
  written = teacher.write_samples(
    made, sums(size=1), 2, template="{question}", cache=str(tmp_path)
  )
  assert written == [
    Completion("<think>\nnone\n</think>\n\nIt is 1.", 9),
    Completion("<think>\nI\n</think>\n\n", 9, finish="length"),
  ]


def test_traces_are_rewritten_and_graded_again(config, server, tmp_path):
  config.teacher.model, config.samples = "zero", 1
  config.rewriter = dict(
    base_url=server.base_url, model="editor", attempts=2, deadline=20.0
  )
  right = lambda number: f"<think>I add.</think>So it is \\boxed{{{number}}}."

  def rule(asked):
    text = asked["messages"][-1]["content"]
    if asked["model"] == "zero":
      return solution(text)
    number = int(text.partition("Add ")[2].split()[0])
    if number == 2:
      return "no thought"
    return right(number + 1 if number != 3 else 0)  # One becomes wrong.

  server.rule = rule
  summary = run(config, tmp_path / "w")
  assert summary["kept"] == 5
  assert summary["dropped"]["rewritten"] == 1
  assert summary["dropped"]["accuracy"] == 1
  by_id = {row["id"]: row for row in rows(tmp_path / "w")}
  kept = by_id["0/toy:1#0"]
  assert kept["messages"][1]["content"] == right(1)
  assert kept["provenance"]["original"] == solution("Add 0")
  assert kept["provenance"]["rewriter"] == "editor"
  assert kept["provenance"]["filters"]["rewritten"]
  failed, wrong = by_id["2/toy:3#0"], by_id["3/toy:4#0"]
  assert not failed["provenance"]["filters"]["rewritten"]
  assert failed["messages"][1]["content"] == solution("Add 2")
  assert wrong["provenance"]["rewards"]["accuracy"] == 0.0
  # The material is shown between tags that it cannot close.
  material = server.asked[-1]["messages"][-1]["content"]
  assert material.startswith("<problem-")


def test_what_the_arguments_of_a_teacher_are():
  with pytest.raises(ValueError, match="max_failed must be 0 to 1, got 2"):
    teacher.make_teacher(base_url="http://x", model="m", max_failed=2.0)


@pytest.mark.slow
@pytest.mark.skipif(not GSM8K.exists(), reason="needs shared data")
def test_gsm8k_from_a_server_that_fails_often(config, server, tmp_path):
  """Every tenth request fails in one of six ways; a kill loses nothing."""
  lines = GSM8K.read_text().splitlines()[:300]
  lines.append(lines[7])  # Which repeats.
  problems = tmp_path / "gsm8k.jsonl"
  problems.write_text("\n".join(lines))
  answers = {row["problem"]: row["answer"] for row in map(json.loads, lines)}
  order = {problem: i for i, problem in enumerate(answers)}
  lock, asked = threading.Lock(), collections.Counter()

  def rule(request):
    problem = request["messages"][-1]["content"]
    with lock:
      asked[problem] += 1
      count = asked[problem]
    answer = answers[problem] if order[problem] % 3 else "1/7"
    thought = f"Try {count}. "
    if order[problem] % 5 == 0:
      thought += "\u6211\u4eec\u518d\u68c0\u67e5\u4e00\u904d\u3002" * 20
    return f"<think>{thought}I add it up.</think>It is \\boxed{{{answer}}}."

  server.rule = rule
  ways = [fails(429, retry_after="0"), fails(500), cuts, resets, fails(408)]
  ways.append(sends(GARBAGE[6]))
  server.script = [
    ways[i // 10 % len(ways)] if i % 10 == 0 else None for i in range(2_000)
  ]
  config.dataset = dict(name="problems", path=str(problems), domain="math")
  config.teacher.attempts = 8
  config.rewards.language = config.rewards.thought
  config.keep.language = 0.9
  config.prompts_per_shard = 64
  write, written = shard_writer.write, []

  def dies(folder, number, *rest):
    written.append((folder.name, number))
    if written.count((folder.name, number)) == 1 and number in (1, 3):
      raise MemoryError("killed")
    write(folder, number, *rest)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(shard_writer, "write", dies)
    for _ in range(4):
      with pytest.raises(MemoryError):
        run(config, tmp_path / "w")
    summary = run(config, tmp_path / "w")
  assert summary["samples"] == 600 and summary["repeated_prompts"] == 1
  assert len({*ids(tmp_path / "w")}) == 600
  # No problem was asked for once more after a reply came.
  assert set(asked.values()) == {2}
  good = [i for i in range(300) if i % 3 and i % 5]
  kept = rows(tmp_path / "w", shard_writer.KEPT)
  assert sorted({int(row["id"].partition("/")[0]) for row in kept}) == good
  assert len(kept) == 2 * len(good)
