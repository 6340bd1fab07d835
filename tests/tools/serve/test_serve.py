"""What OpenAI's clients rely on, tried with OpenAI's client."""

import json
import threading

import numpy as np
import pytest
import serving

pytestmark = pytest.mark.slow

QUESTION = "State the final answer to the following problem: 3 + 4 ="
CHAT = dict(
  model="demo", messages=[dict(role="user", content=QUESTION)], seed=7
)


def offline(server, prompts, n, max_tokens, seed=7):
  """What the engine samples without a server: tokens [P][n]."""
  params = server.engine.prepare(server.model.params)
  rollout = server.engine(
    params, prompts, n, seed=seed, round=0, max_tokens=max_tokens
  )
  tokens, lengths = map(np.asarray, (rollout.completions, rollout.lengths))
  return [
    [tokens[p, g, : lengths[p, g]].tolist() for g in range(n)]
    for p in range(len(prompts))
  ]


def test_choices_are_those_of_the_engine(client, server):
  answer = client.chat.completions.create(
    **CHAT, n=3, max_tokens=48, extra_body=dict(return_token_ids=True)
  )
  (expected,) = offline(server, [answer.prompt_token_ids], 3, 48)
  assert [c.token_ids for c in answer.choices] == expected
  assert answer.usage.completion_tokens == sum(map(len, expected))
  assert answer.usage.prompt_tokens == len(answer.prompt_token_ids)
  for choice, tokens in zip(answer.choices, expected):
    ended = tokens[-1] in server.model.tokenizer.eos_ids
    assert choice.finish_reason == ("stop" if ended else "length")


def test_thoughts_are_apart_from_what_the_reader_sees(client):
  answer = client.chat.completions.create(**CHAT, n=8, max_tokens=120)
  seen = 0
  for choice in answer.choices:
    message = choice.message
    assert message.reasoning_content == message.reasoning
    assert "<think>" not in (message.content or "")
    seen += bool(message.reasoning_content and message.content)
  assert seen
  together = client.chat.completions.create(
    **CHAT, n=8, max_tokens=120, extra_body=dict(separate_reasoning=False)
  )
  for one, other in zip(answer.choices, together.choices):
    if one.message.reasoning_content and one.message.content:
      assert one.message.reasoning_content in other.message.content


def test_a_stream_is_the_whole_answer_in_pieces(client):
  options = dict(n=2, max_tokens=60, logprobs=True, top_logprobs=2)
  whole = client.chat.completions.create(**CHAT, **options)
  chunks = [
    *client.chat.completions.create(
      **CHAT,
      **options,
      stream=True,
      stream_options=dict(include_usage=True),
    )
  ]
  assert len(chunks) > 4
  assert not chunks[-1].choices and chunks[-1].usage == whole.usage
  for choice in whole.choices:
    mine = [
      chunk.choices[0]
      for chunk in chunks
      if chunk.choices and chunk.choices[0].index == choice.index
    ]
    text = "".join(c.delta.content or "" for c in mine)
    thought = "".join(
      getattr(c.delta, "reasoning_content", None) or "" for c in mine
    )
    assert text == (choice.message.content or "")
    assert thought == (choice.message.reasoning_content or "")
    assert mine[-1].finish_reason == choice.finish_reason
    logprobs = [t for c in mine if c.logprobs for t in c.logprobs.content]
    assert logprobs == choice.logprobs.content


def test_log_probabilities_are_those_of_the_model(client, server):
  answer = client.completions.create(
    model="demo",
    prompt="6 + 7 = 13",
    max_tokens=8,
    logprobs=3,
    echo=True,
    seed=1,
    extra_body=dict(return_token_ids=True),
  )
  (choice,) = answer.choices
  ids = [*choice.prompt_token_ids, *choice.token_ids]
  (expected,) = server.model.logprobs([ids])
  found = choice.logprobs.token_logprobs
  assert found[0] is None and len(found) == len(ids)
  np.testing.assert_allclose(found[1:], expected[1:], atol=1e-4)
  assert "".join(choice.logprobs.tokens) == choice.text
  assert choice.text.startswith("6 + 7 = 13")
  offsets = np.cumsum([0, *map(len, choice.logprobs.tokens)])[:-1]
  assert choice.logprobs.text_offset == offsets.tolist()
  for token, value, top in zip(
    choice.logprobs.tokens[1:], found[1:], choice.logprobs.top_logprobs[1:]
  ):
    assert top[token] == pytest.approx(value, abs=1e-5)
    assert max(top.values()) <= 0 and len(top) in (3, 4)


def test_the_score_of_a_prompt_is_not_that_of_another(client):
  """A server that ignores echo would score all of them alike."""
  right, wrong = client.completions.create(
    model="demo",
    prompt=["6 + 7 = 13", "6 + 7 = 52"],
    max_tokens=0,
    logprobs=1,
    echo=True,
  ).choices
  total = lambda choice: sum(choice.logprobs.token_logprobs[1:])
  assert total(right) > total(wrong) + 1
  assert right.text == "6 + 7 = 13"


def test_prompts_of_token_ids_come_back_in_order(client, server):
  encode = server.model.tokenizer.encode
  prompts = [[*encode(f"{i} + {i} =")] for i in (3, 4, 5)]
  answer = client.completions.create(
    model="demo",
    prompt=prompts,
    n=2,
    max_tokens=12,
    seed=7,
    extra_body=dict(return_token_ids=True),
  )
  expected = offline(server, prompts, 2, 12)
  found = [choice.token_ids for choice in answer.choices]
  assert found == [tokens for group in expected for tokens in group]
  assert [choice.index for choice in answer.choices] == [*range(6)]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_that_spans_tokens_ends_the_text(client, stream):
  options = dict(model="demo", prompt="6 + 7 =", seed=3, max_tokens=40)
  (whole,) = client.completions.create(**options).choices
  stop = whole.text[5:9]
  answer = client.completions.create(**options, stop=stop, stream=stream)
  choices = (
    [c for part in answer for c in part.choices] if stream else (answer.choices)
  )
  text = "".join(choice.text for choice in choices)
  assert text == whole.text[: whole.text.index(stop)]
  assert choices[-1].finish_reason == "stop"


def test_greedy_answers_do_not_depend_on_the_seed_and_sampled_ones_do(client):
  def text(**options):
    answer = client.completions.create(
      model="demo", prompt="6 + 7 =", max_tokens=24, **options
    )
    return answer.choices[0].text

  assert text(temperature=0, seed=1) == text(temperature=0, seed=2)
  assert text(seed=1) == text(seed=1)
  assert len({text(seed=seed) for seed in range(6)}) > 1


def test_tokens_and_texts_are_translated(server):
  status, made = server.post("/tokenize", prompt="6 + 7 =")
  assert status == 200 and made["count"] == len(made["tokens"])
  status, text = server.post("/detokenize", tokens=made["tokens"])
  assert status == 200 and text["prompt"] == "6 + 7 ="
  status, chat = server.post("/tokenize", messages=CHAT["messages"])
  assert status == 200 and chat["count"] > made["count"]


def test_models_health_and_metrics(client, server):
  (card,) = client.models.list().data
  assert card.id == "demo" and client.models.retrieve("demo") == card
  assert server.request("GET", "/health")[0] == 200
  client.completions.create(model="demo", prompt="1", max_tokens=2)
  assert server.idle()
  text = server.request("GET", "/metrics")[2].decode()
  values = dict(
    line.rsplit(" ", 1)
    for line in text.splitlines()
    if line and not line.startswith("#")
  )
  assert float(values["r1jax_completion_tokens_total"]) > 0
  assert float(values["r1jax_slots"]) == server.engine.num_slots
  assert float(values["r1jax_busy_slots"]) == 0


ERRORS = [
  ("/v1/chat/completions", dict(CHAT, model="other"), 404, "model_not_found"),
  ("/v1/chat/completions", dict(model="demo"), 400, None),
  ("/v1/chat/completions", dict(CHAT, temperature=-1), 400, None),
  ("/v1/chat/completions", dict(CHAT, n=0), 400, None),
  ("/v1/chat/completions", dict(CHAT, tools=[{}]), 400, "unsupported_parame"),
  ("/v1/chat/completions", dict(CHAT, max_tokens=500), 400, "context_length"),
  ("/v1/completions", dict(prompt="a " * 500), 400, "context_length_exceede"),
  ("/v1/completions", dict(prompt=[10**6]), 400, None),
  ("/v1/completions", dict(prompt=""), 400, None),
  ("/v1/completions", dict(prompt="a", stop=[""]), 400, None),
  ("/v1/completions", dict(prompt="a", logprobs=10**6), 400, None),
  ("/v1/nothing", {}, 404, None),
]


def check_error(status, content):
  """Raises AssertionError unless the content is an error of OpenAI's API."""
  error = content["error"]
  assert content.keys() == {"error"}
  assert error.keys() == {"message", "type", "param", "code"}
  assert isinstance(error["message"], str) and error["message"]
  assert 400 <= status < 500
  assert "Traceback" not in error["message"]
  assert "/" + "work" not in error["message"] and "r1jax/" not in str(error)


@pytest.mark.parametrize("path, body, status, code", ERRORS)
def test_what_cannot_be_answered_is_an_error_of_the_api(
  server, path, body, status, code
):
  got, content = server.post(path, **body)
  assert got == status
  check_error(got, content)
  if code:
    assert content["error"]["code"].startswith(code)
  assert server.sampler.pending == 0


@pytest.mark.parametrize(
  "body, headers, status",
  [
    (b"{", None, 400),
    (b"[1]", None, 400),
    (b'{"a": NaN}', None, 400),
    (b'{"prompt": "\\ud800"}', None, 400),
    (b"{}", {"content-type": "text/plain"}, 415),
    (b" " * (2**25 + 1), None, 413),
  ],
)
def test_bodies_that_are_no_request_are_refused(server, body, headers, status):
  got, _, text = server.request("POST", "/v1/completions", body, headers)
  assert got == status
  check_error(got, json.loads(text))


def test_a_client_that_leaves_frees_its_slots(server):
  """In the middle of a stream, and while it waits for a whole answer."""
  import http.client

  for stream in (True, False):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, 60)
    body = dict(prompt="1 + 1 =", n=4, max_tokens=150, stream=stream)
    body |= dict(ignore_eos=True)
    connection.request(
      "POST", "/v1/completions", json.dumps(body), server.headers
    )
    if stream:
      assert connection.getresponse().read(10)
    connection.close()
    assert server.idle()
  text = server.request("GET", "/metrics")[2].decode()
  (line,) = [
    x
    for x in text.splitlines()
    if x.startswith("r1jax_cancelled_requests_total")
  ]
  assert float(line.split()[1]) >= 1


def test_a_full_queue_refuses_and_a_deadline_ends(model, server):
  with serving.running(model, server.engine, queue=4, timeout=0.05) as busy:
    body = dict(prompt="1 + 1 =", max_tokens=240, ignore_eos=True)
    status, content = busy.post("/v1/completions", **body, n=4)
    assert status == 504 and content["error"]["code"] == "timeout"
  with serving.running(model, server.engine, queue=4) as busy:
    statuses = []

    def ask():
      statuses.append(busy.request("POST", "/v1/completions", body | {"n": 4}))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    found = sorted(status for status, _, _ in statuses)
    assert found[0] == 200 and found[-1] == 429
    for status, headers, text in statuses:
      if status == 429:
        check_error(status, json.loads(text))
        assert headers["retry-after"] == "1"
    assert busy.idle()


def test_a_token_is_asked_for_and_other_hosts_are_refused(model, server):
  with serving.running(
    model, server.engine, token="secret", hosts=("127.0.0.1",)
  ) as guarded:
    status, headers, text = guarded.request("GET", "/v1/models")
    assert status == 401 and headers["www-authenticate"] == "Bearer"
    check_error(status, json.loads(text))
    bearer = {"authorization": "Bearer secret"}
    assert guarded.request("GET", "/v1/models", headers=bearer)[0] == 200
    wrong = {"authorization": "Bearer secre"}
    assert guarded.request("GET", "/v1/models", headers=wrong)[0] == 401
    assert guarded.request("GET", "/health", headers={})[0] == 200
    elsewhere = bearer | {"host": "evil.example"}
    assert guarded.request("GET", "/v1/models", headers=elsewhere)[0] == 403
