"""A conversation: shown as it comes, told apart, stopped, gone on with."""

import dataclasses
import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
import types

import jax
import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.data import templates, tokenizer
from r1jax.rollouts import stream
from r1jax.runtime import process as runtime
from r1jax.tools import chat

BASE, END = "r1jax/base", "<end>"
CHAT = ("-m", "r1jax", "chat")


@pytest.fixture(scope="module")
def words(write_tokenizer, tmp_path_factory):
  """A byte-level tokenizer; its thoughts' tags take several tokens."""
  folder = tmp_path_factory.mktemp("words")
  return tokenizer.load(str(write_tokenizer(folder)))


def scripted(words, *answers):
  """A `complete` that says `answers`, and the list of what it was given."""
  given, texts = [], iter(answers)

  def complete(prompt, *, max_tokens, number):
    given.append(words.decode(prompt))
    ids = [*words.encode(next(texts)), *words.eos_ids]
    yield from ids[:max_tokens]

  return complete, given


def open_up(question, *, generation_prompt=False):
  """A template that writes the last question and opens a thought."""
  return question[-1]["content"] + "|<think>\n" * generation_prompt


def everything(messages, *, generation_prompt=False):
  """A template that shows all there is."""
  told = "".join(f"[{m['role']}:{m['content']}]" for m in messages)
  return told + "[assistant:" * generation_prompt


def run_interactive(words, template, *answers, messages=(), max_tokens=999):
  complete, given = scripted(words, *answers)
  return chat.Conversation(
    words, template, complete, max_tokens, [*messages]
  ), given


def together(parts):
  """The thought and the rest of what was told apart."""
  told = [*parts]
  order = [thought for thought, _ in told]
  assert order == sorted(order, reverse=True)  # The thought comes first.
  return tuple(
    "".join(text for thought, text in told if thought is kind)
    for kind in (True, False)
  )


@pytest.mark.parametrize(
  ("text", "thought", "rest"),
  [
    ("<think>a</think>b", "<think>a</think>", "b"),
    (" \n<think>a</think> <answer>b", " \n<think>a</think>", " <answer>b"),
    ("<think>a</think>b</think>c", "<think>a</think>", "b</think>c"),
    ("<think>a<think>b</think>c", "<think>a<think>b</think>", "c"),
    ("<think>never ends </thin", "<think>never ends </thin", ""),
    ("what <think> is </think>", "", "what <think> is </think>"),
    ("<thin", "", "<thin"),
    ("</think>a", "", "</think>a"),
    ("<think></think>", "<think></think>", ""),
    (" ", "", " "),
    ("", "", ""),
  ],
)
def test_a_thought_is_what_an_answer_begins_with(text, thought, rest):
  for size in (1, 2, 3, 5, 8, 99):
    parts = [text[i : i + size] for i in range(0, len(text), size)]
    assert together(chat.split_thought(parts)) == (thought, rest)


PARTS = st.lists(
  st.sampled_from(
    ["<think>", "</think>", "<", "th", "ink>", "/", " ", "a", "</", "\n", ""]
  )
)


@settings(max_examples=500, deadline=None)
@given(PARTS)
def test_no_text_is_lost_however_it_comes(parts):
  text = "".join(parts)
  assert together(chat.split_thought(parts)) == together(
    chat.split_thought([text])
  )
  assert "".join(together(chat.split_thought(parts))) == text


@settings(max_examples=300, deadline=None)
@given(PARTS)
def test_only_what_may_be_a_tag_is_held_back(parts):
  given, out = "", ""

  def feed():
    nonlocal given
    for part in parts:
      given += part
      yield part
      held = given[len(out) :]
      assert len(held.lstrip()) < len("</think>")

  for _, text in chat.split_thought(feed()):
    out += text
  assert out == given


def test_earlier_thoughts_are_not_read_again(words):
  told, given = run_interactive(
    words, everything, "<think>\nhm</think>\n\nHo", "<think>\nhm", "Ha"
  )
  shown = [together(told.ask(question)) for question in ("a", "b", "c")]
  assert shown == [
    ("<think>\nhm</think>", "\n\nHo"),
    ("<think>\nhm", ""),
    ("", "Ha"),
  ]
  first = "[user:a][assistant:\n\nHo]"
  assert given == [
    "[user:a][assistant:",
    f"{first}[user:b][assistant:",
    f"{first}[user:b][assistant:][user:c][assistant:",
  ]


def test_a_system_message_stays_in_front(words):
  system = dict(role="system", content="S")
  told, given = run_interactive(words, everything, "x", "y", messages=[system])
  for question in ("a", "b"):
    together(told.ask(question))
  assert all(prompt.startswith("[system:S][user:a]") for prompt in given)


def test_the_opening_that_a_template_writes_is_shown(words):
  told, given = run_interactive(words, open_up, "hm</think>Ho")
  assert together(told.ask("a")) == ("<think>\nhm</think>", "Ho")
  assert given == ["a|<think>\n"]
  assert told.messages[-1] == dict(role="assistant", content="Ho")


def test_text_is_shown_as_it_comes(words):
  told, _ = run_interactive(words, everything, "caf\u00e9 \U0001f600!")
  parts = [text for _, text in told.ask("a")]
  assert len(parts) > 5 and "".join(parts) == "caf\u00e9 \U0001f600!"
  assert "\ufffd" not in "".join(parts)


def test_an_answer_that_was_left_is_kept_as_far_as_it_went(words):
  told, given = run_interactive(words, everything, "one two three", "x")
  answer, heard = told.ask("a"), ""
  while "tw" not in heard:
    heard += next(answer)[1]
  answer.close()
  assert told.messages[-1] == dict(role="assistant", content=heard)
  together(told.ask("b"))
  assert given[-1] == f"[user:a][assistant:{heard}][user:b][assistant:"


def test_a_limit_ends_an_answer(words):
  told, _ = run_interactive(words, everything, "one two three", max_tokens=2)
  answer = words.decode(words.encode("one two three")[:2])
  assert together(told.ask("a")) == ("", answer)


def test_a_question_that_cannot_be_asked_is_forgotten(words):
  def refuse(*arguments, **options):
    raise ValueError("not this")
    yield  # A generator raises when it is first asked.

  template = lambda *arguments, **options: next(refuse())
  for changed in (dict(template=template), dict(complete=refuse)):
    told, _ = run_interactive(words, open_up, "x")
    told = dataclasses.replace(told, **changed)
    with pytest.raises(ValueError, match="not this"):
      together(told.ask("a"))
    assert told.messages == []


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def terminal(monkeypatch):
  for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("TERM", "xterm")
  return Terminal()


def test_a_terminal_shows_the_thought_dimmer(terminal):
  chat.Screen(terminal).show([(True, "<think>[b]hm"), (False, "Ho[/]\n")])
  assert terminal.getvalue() == "\x1b[2m<think>[b]hm\x1b[0mHo[/]\n"


def test_a_terminal_is_not_steered(terminal):
  chat.Screen(terminal).show([(False, "\x1b[31ma\x07\rb\x9b1m\u8ba1")])
  shown = terminal.getvalue()
  assert shown == "\ufffd[31ma\ufffd\ufffdb\ufffd1m\u8ba1\n"


def test_long_lines_are_not_broken(terminal):
  text = "word " * 100 + "x" * 300
  chat.Screen(terminal).show([(False, text)])
  assert terminal.getvalue() == text + "\n"


def test_a_file_gets_the_text_and_one_line_break():
  for text in ("a", "a\n"):
    file = io.StringIO()
    chat.Screen(file).show([(True, "<think>"), (False, text), (False, "")])
    assert file.getvalue() == "<think>a\n"


def press():
  os.kill(os.getpid(), signal.SIGINT)
  time.sleep(0.01)  # Handlers run between two instructions.


def test_pressed_once_it_stops_and_twice_it_leaves():
  before = signal.getsignal(signal.SIGINT)

  def count(presses):
    for i in range(9):
      for _ in range(presses * (i == 2)):
        press()
      yield i

  with chat.until_interrupted(count(0)) as parts:
    assert [*parts] == [*range(9)]
  with chat.until_interrupted(count(1)) as parts:
    assert [*parts] == [0, 1, 2]
  with (
    pytest.raises(KeyboardInterrupt),
    chat.until_interrupted(count(2)) as parts,
  ):
    assert [*parts]
  assert signal.getsignal(signal.SIGINT) is before


def options(bos=None):
  given = flags.FlagValues()
  defaults = dict(model=BASE, template=None, system="", max_tokens=9)
  sampling = dict(temperature=0.6, top_p=0.95, seed=0, bos=bos)
  for name, value in (defaults | sampling).items():
    flags.DEFINE_string(name, None, "", flag_values=given)
    given[name].value = value
  given.mark_as_parsed()
  return given


def test_auto_is_the_models_tokenizer_template_if_it_has_one(words):
  assert chat.pick_template(None, words) is templates.TEMPLATES["r1_zero"]
  own = types.SimpleNamespace(**vars(words) | dict(chat_template="own"))
  for name in ("encode", "decode", "encode_ordinary", "id_to_token"):
    setattr(own, name, getattr(words, name))
  for name in (None, "chat"):
    assert chat.pick_template(name, own)([]) == "own"
  assert chat.pick_template("deepseek_r1", own) is templates.deepseek_r1


@pytest.mark.parametrize(
  ("backend", "dtype"), [("cpu", "float32"), ("gpu", "bfloat16")]
)
def test_a_large_model_is_loaded_beside_the_answer(
  backend, dtype, monkeypatch, capsys
):
  used = []

  def opened(model, params, words, **kwargs):
    used.extend([params["embed"].dtype.name, model.config.compute_dtype])
    return types.SimpleNamespace(complete=iter)

  monkeypatch.setattr("r1jax.training.models.LARGE", 0)
  monkeypatch.setattr(runtime, "start", lambda: None)
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  monkeypatch.setattr(stream, "Stream", opened)
  assert chat.open_conversation(options(bos=True)).tokenizer.prefix_ids == (1,)
  assert used == [dtype, dtype]
  out, error = capsys.readouterr()
  assert out == "" and "MB" in error


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "--model is not set; set it to the directory"),
    (["--model=nope"], "nope is no directory; to download a model"),
    (["--model=tests", "--prompt=a"], "tests holds no tokenizer.model"),
    ([f"--model={BASE}"], "the question is empty; set --prompt"),
    ([f"--model={BASE}", "--prompt= "], "the question is empty"),
    ([f"--model={BASE}", "--prompt=a", "b"], "unknown argument 'b'; flags"),
    ([f"--model={BASE}", "--promt=a"], "unknown flag --promt; did you mean"),
    (
      [f"--model={BASE}", "--prompt=a", "--system=b"],
      "this template does not support system messages",
    ),
    (
      [f"--model={BASE}", "--prompt=a", "--template=chat"],
      "the tokenizer has no chat template",
    ),
    (
      [f"--model={BASE}", "--prompt=a", "--temperature=-1"],
      "flag --temperature=-1: -1.0 is not",
    ),
  ],
  ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.slow
def test_what_is_wrong_is_one_line(python, arguments, message):
  done = python(*CHAT, *arguments)
  assert done.returncode == 2 and done.stdout == ""
  (line,) = done.stderr.splitlines()
  assert line.startswith(f"error: {message}")


def test_debug_shows_the_trace(python):
  done = python(*CHAT, "--model=nope", "--debug")
  assert done.returncode == 2 and "Traceback" in done.stderr
  assert done.stderr.splitlines()[-1].startswith("error: nope is no directory")


@pytest.mark.slow
def test_the_base_answers_one_question(python):
  ask = (f"--model={BASE}", "--prompt=What is 17 + 25?")
  done = python(*CHAT, *ask)
  assert done.returncode == 0, done.stderr
  assert done.stderr == ""
  assert "</think>" in done.stdout and "</answer>" in done.stdout
  assert done.stdout.endswith("\n")
  assert python(*CHAT, *ask).stdout == done.stdout
  greedy = [*ask, "--temperature=0", "--max_tokens=3"]
  assert len(python(*CHAT, *greedy).stdout) < len(done.stdout)


@pytest.mark.slow
def test_a_person_is_answered_until_they_leave():
  ours, theirs = pty.openpty()
  process = subprocess.Popen(
    [sys.executable, "-m", "r1jax", "chat", f"--model={BASE}"],
    stdin=theirs,
    stdout=theirs,
    stderr=theirs,
    env=os.environ | {"TERM": "xterm"},
    start_new_session=True,
  )
  os.close(theirs)

  def read(mark):
    seen, limit = "", time.monotonic() + 100
    while mark not in seen and time.monotonic() < limit:
      if select.select([ours], [], [], 1)[0]:
        try:
          seen += os.read(ours, 4096).decode()
        except OSError:  # The other side has left.
          break
    return seen

  try:
    assert read("> ").endswith("> ")
    for question in (b"What is 1 + 2?", b"What is 3 + 4?"):
      os.write(ours, question + b"\n")
      answer = read("\n> ")
      assert "</answer>" in answer and "\x1b[2m" in answer
    os.write(ours, b"\x04")
    read("never")
    assert process.wait(60) == 0
  finally:
    process.kill()
    process.wait()
    os.close(ours)
