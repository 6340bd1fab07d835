"""Requests to a server that hangs, fails, resets connections or sends nonsense.

It is a real server on loopback; see `conftest`.
"""

import asyncio
import email.utils
import os
import signal
import subprocess
import sys
import time

import pytest

from r1jax.rewards.judges import endpoint
from r1jax.rewards.judges.endpoint import Endpoint, Request, ask

pytest.importorskip("openai")


def number(request, reply):
  """The number that a reply is; None if it is none."""
  return float(reply) if reply.isdigit() else None


def asks(count):
  return [Request("add", f"{i}") for i in range(count)]


def wait_for(condition, seconds=5.0):
  end = time.monotonic() + seconds
  while not (holds := condition()) and time.monotonic() < end:
    time.sleep(0.01)
  return holds


def nothing_goes_on():
  return not asyncio.all_tasks(endpoint._loop(os.getpid()))


def test_a_request_has_the_expected_messages_and_headers(
  place, judge_server, monkeypatch
):
  monkeypatch.setenv("OPENAI_API_KEY", "secret")
  place = place._replace(parameters=dict(temperature=0.5, max_tokens=9))
  assert ask(place, [Request("rules", "question")], number)() == [7.0]
  assert judge_server.asked == [
    dict(
      model="m",
      messages=[
        dict(role="system", content="rules"),
        dict(role="user", content="question"),
      ],
      temperature=0.5,
      max_tokens=9,
    )
  ]
  assert judge_server.headers[0]["authorization"] == "Bearer secret"


def test_values_come_in_the_order_of_the_requests(place, judge_server):
  def later_for_the_first(asked):
    i = int(asked["messages"][1]["content"])
    time.sleep(0.02 * (8 - i))
    return str(i)

  judge_server.rule = later_for_the_first
  assert ask(place, asks(8), number)() == [*range(8)]
  assert ask(place, [], number)() == []


def test_concurrency_limits_the_requests_at_a_time(place, judge_server):
  judge_server.rule = lambda asked: time.sleep(0.1) or "7"
  ask(place._replace(concurrency=3), asks(12), number)()
  assert 1 < judge_server.busiest <= 3


def test_concurrent_calls_share_the_limit_of_requests(place, judge_server):
  """As the groups of a round do, each graded once it is complete."""
  judge_server.rule = lambda asked: time.sleep(0.05) or "7"
  place = place._replace(concurrency=3)
  calls = [ask(place, [Request("a", f"{i}")], number) for i in range(12)]
  assert [values() for values in calls] == [[7.0]] * 12
  assert 1 < judge_server.busiest <= 3


def test_equal_requests_are_sent_once_and_each_sample_separately(
  place, judge_server
):
  same, other = Request("a", "b"), Request("a", "b", sample=1)
  assert ask(place, [same, other, same], number)() == [7.0] * 3
  assert len(judge_server.asked) == 2


def test_starting_does_not_wait(place, judge_server, acts):
  judge_server.script = [acts.hangs]
  start = time.monotonic()
  values = ask(place, asks(1), number)
  assert time.monotonic() - start < 5.0
  judge_server.released.set()
  assert values() == [7.0]  # At the second attempt.
  assert values() == [7.0]


MISHAPS = dict(
  busy=lambda acts: acts.fails(429),
  late=lambda acts: acts.fails(408),
  broken=lambda acts: acts.fails(500),
  away=lambda acts: acts.fails(503),
  cut_off=lambda acts: acts.sends('{"choices": [{"mess'),
  no_json=lambda acts: acts.sends("seven"),
  a_page=lambda acts: acts.sends("<html>7</html>", kind="text/html"),
  a_list=lambda acts: acts.sends("[7]"),
  null=lambda acts: acts.sends("null"),
  deep=lambda acts: acts.sends("[" * 100_000),
  no_choices=lambda acts: acts.sends('{"choices": []}'),
  null_choices=lambda acts: acts.sends('{"choices": null}'),
  odd_choices=lambda acts: acts.sends('{"choices": [7, {"message": 7}]}'),
  no_words=lambda acts: acts.says(None),
  bad_utf8=lambda acts: (
    lambda handler: handler.wfile.write(
      b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n\xff\xfe"
    )
  ),
  no_http=lambda acts: lambda handler: handler.wfile.write(b"\0" * 99),
  no_reply=lambda acts: lambda handler: None,
  reset=lambda acts: acts.resets,
  unreadable=lambda acts: acts.says("as I see it, seven"),
)


@pytest.mark.parametrize("mishap", MISHAPS)
def test_a_failed_request_is_sent_again(place, judge_server, acts, mishap):
  judge_server.script = [MISHAPS[mishap](acts)]
  assert ask(place, asks(1), number)() == [7.0]
  assert len(judge_server.asked) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_permanent_errors_are_not_retried(
  place, judge_server, acts, caplog, status
):
  judge_server.script = [acts.fails(status)]
  assert ask(place, asks(1), number)() == [None]
  assert len(judge_server.asked) == 1
  assert f"status {status}" in caplog.text


def test_a_request_that_keeps_failing_is_given_up_with_a_warning(
  place, judge_server, acts, caplog
):
  judge_server.script = [acts.fails(500), acts.resets, acts.says("nonsense")]
  assert ask(place, asks(1), number)() == [None]
  assert len(judge_server.asked) == 3
  assert "1 of 1 requests without a usable reply" in caplog.text
  assert "1 x a reply that cannot be read" in caplog.text


def test_a_failed_request_does_not_affect_others(place, judge_server):
  judge_server.rule = lambda asked: (
    "nonsense" if asked["messages"][1]["content"] == "3" else "7"
  )
  assert ask(place, asks(5), number)() == [7.0, 7.0, 7.0, None, 7.0]


@pytest.mark.parametrize("how", ["hangs", "drips", "fails"])
def test_no_request_exceeds_its_deadline(
  place, judge_server, acts, caplog, how
):
  act = acts.fails(500) if how == "fails" else getattr(acts, how)
  judge_server.script = [act] * 1000
  place = place._replace(deadline=0.4, attempts=1000)
  start = time.monotonic()
  assert ask(place, asks(4), number)() == [None] * 4
  assert 0.2 < time.monotonic() - start < 5.0
  assert "4 of 4" in caplog.text
  assert wait_for(nothing_goes_on)


def test_a_refused_connection_gives_None(place, judge_server):
  judge_server.server_close()
  assert ask(place, asks(2), number)() == [None, None]


def test_the_deadline_does_not_run_while_a_request_waits_its_turn(
  place, judge_server, acts
):
  judge_server.script = [acts.hangs]
  place = place._replace(deadline=2.0, concurrency=1)
  assert ask(place, asks(3), number)() == [None, 7.0, 7.0]


def test_retry_after_is_respected(place, judge_server, acts):
  judge_server.script = [acts.fails(429, retry_after="1")]
  assert ask(place, asks(1), number)() == [7.0]
  first, second = judge_server.times
  assert 0.95 < second - first < 5.0


def test_retry_after_beyond_the_deadline_gives_up_at_once(
  place, judge_server, acts
):
  judge_server.script = [acts.fails(503, retry_after="60")]
  start = time.monotonic()
  assert ask(place, asks(1), number)() == [None]
  assert time.monotonic() - start < 5.0
  assert len(judge_server.asked) == 1


@pytest.mark.parametrize(
  ("value", "seconds"),
  [
    ("3", 3.0),
    ("0.5", 0.5),
    ("-1", 0.0),
    ("nan", 0.0),
    ("soon", 0.0),
    ("", 0.0),
    ("Sun, 99 Abc 99999 99:99:99 GMT", 0.0),
  ],
)
def test_retry_after_is_parsed(value, seconds):
  assert endpoint._retry_after({"retry-after": value}) == seconds


def test_retry_after_may_be_a_date():
  date = lambda later: email.utils.formatdate(time.time() + later, usegmt=True)
  found = endpoint._retry_after({"retry-after": date(1000)})
  assert found == pytest.approx(1000, abs=60)
  assert endpoint._retry_after({"retry-after": date(-1000)}) == 0


def test_lone_surrogates_are_sent_as_question_marks(place, judge_server):
  text = "\0 \ud800 \x1b ½ \U0001f600 " + "x" * 2**20
  assert ask(place, [Request("a", text)], number)() == [7.0]
  sent = judge_server.asked[0]["messages"][1]["content"]
  assert sent == text.replace("\ud800", "?")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(base_url="localhost:8000"), "must start with http.*localhost:8000"),
    (dict(model=""), "model must name"),
    (dict(deadline=0.0), "deadline must be seconds, got 0.0"),
    (dict(deadline=float("inf")), "deadline must be seconds, got inf"),
    (dict(attempts=0), "attempts must be 1 or more, got 0"),
    (dict(concurrency=-1), "concurrency must be 1 or more, got -1"),
    (dict(parameters=dict(top_k=5)), "parameters: .*top_k.*extra_body"),
    (dict(parameters=dict(model="n")), "parameters: .*model"),
  ],
)
def test_an_invalid_endpoint_is_refused(changes, message):
  place = Endpoint("http://localhost:1/v1", "m")._replace(**changes)
  with pytest.raises(ValueError, match=message):
    ask(place, [], number)


def test_without_openai_the_error_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "openai", None)
  with pytest.raises(ImportError, match=r"pip install .r1jax\[judge\]"):
    ask(Endpoint("http://localhost:1/v1", "m"), [], number)


ASKER = """
import runpy, sys
module = runpy.run_path(sys.argv[1])
place = module["Endpoint"](sys.argv[2], "m", deadline=1000.0)
module["ask"](place, [module["Request"]("a", "b")], lambda asked, reply: 1.0)()
"""


def test_an_interrupted_program_does_not_wait_for_replies(judge_server, acts):
  judge_server.script = [acts.hangs]
  program = subprocess.Popen(
    [
      *(sys.executable, "-c"),
      "import signal; signal.signal(2, signal.default_int_handler)\n" + ASKER,
      *(endpoint.__file__, judge_server.base_url),
    ],
    stderr=subprocess.PIPE,
  )
  assert wait_for(lambda: judge_server.asked, 60.0)
  program.send_signal(signal.SIGINT)
  start = time.monotonic()
  _, errors = program.communicate(timeout=30)
  assert time.monotonic() - start < 5.0
  assert b"Fatal" not in errors
