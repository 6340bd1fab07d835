"""Talk to a model.

    r1jax chat --model=r1jax/base

The directory holds a model in Hugging Face layout and its tokenizer. Answers
are shown as they are written, the thought dimmer than the rest; earlier
thoughts are not read again. Ctrl-C stops an answer, a second one leaves, and so
does Ctrl-D. Weights are float32 on a CPU, and bfloat16 on an accelerator. For a
single answer, and nothing else on standard output:

    r1jax chat --model=r1jax/base --prompt="What is 17 + 25?"
    echo "What is 17 + 25?" | r1jax chat --model=r1jax/base

What is wrong is said in one line, with exit code 2 (1 for a fault of the
program itself); --debug adds the stack trace.
"""

import contextlib
import dataclasses
import io
import pathlib
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator

from absl import flags

from r1jax import config as configs
from r1jax.data import chat, templates, tokenizer
from r1jax.runtime import process


@dataclasses.dataclass
class Conversation:
  """Messages so far, and who answers them."""

  words: chat.ChatTokenizer
  template: templates.Template
  complete: Callable[..., Iterator[int]]  # As of `rollouts.stream.Stream`.
  max_tokens: int
  messages: list[templates.Message]

  def ask(self, question: str) -> Iterator[tuple[bool, str]]:
    """The answer as it comes: whether it is thought, and some of its text.

    However far it was followed, it is a part of the conversation afterwards; a
    question whose answer never began is not.
    """
    messages = [*self.messages, {"role": "user", "content": question}]
    prompt = chat.prompt(messages, self.template, self.words)
    written = []
    ids = self.complete(
      prompt.ids, max_tokens=self.max_tokens, number=len(messages)
    )

    def texts():
      stream = tokenizer.TextStream(self.words)
      yield prompt.prefill
      for number in ids:
        written.append(stream.push([number]))
        yield written[-1]
      written.append(stream.flush())
      yield written[-1]

    try:
      yield from tell_apart(texts())
    finally:
      if written:
        answer = chat.without_thought("".join([prompt.prefill, *written]))
        self.messages = [*messages, {"role": "assistant", "content": answer}]


def tell_apart(texts: Iterable[str]) -> Iterator[tuple[bool, str]]:
  """The same text in parts, each with True if it belongs to the thought.

  A thought is what an answer begins with, from <think> to the first </think>,
  tags included. What may be the beginning of a tag is held back.
  """
  held, thinking = "", None  # None: it has not begun with anything.
  for text in texts:
    held += text
    if thinking is None:
      start = held.lstrip()
      if start.startswith(templates.BEGIN_THOUGHT):
        thinking = True
      elif not templates.BEGIN_THOUGHT.startswith(start):
        thinking = False
      else:
        continue
    if thinking:
      before, ended, after = held.partition(templates.END_THOUGHT)
      if ended:
        yield True, before + ended
        held, thinking = after, False
      else:
        keep = _overlap(held, templates.END_THOUGHT)
        cut = len(held) - keep
        if cut:
          yield True, held[:cut]
        held = held[cut:]
    if thinking is False and held:
      yield False, held
      held = ""
  if held:
    yield bool(thinking), held


def _overlap(text: str, tag: str) -> int:
  """How many characters at the end of `text` may begin `tag`."""
  sizes = range(len(tag) - 1, 0, -1)
  return next((size for size in sizes if text.endswith(tag[:size])), 0)


class Screen:
  """Where answers are shown: in two tones on a terminal, plain elsewhere."""

  def __init__(self, file: io.TextIOBase | None = None):
    from rich.console import Console

    self._file = file or sys.stdout
    if hasattr(self._file, "reconfigure"):
      self._file.reconfigure(errors="replace")  # A terminal without Unicode.
    self._console = Console(file=self._file, highlight=False)

  def show(self, parts: Iterable[tuple[bool, str]]) -> None:
    """Writes an answer as it comes, and a line break behind it."""
    last = ""
    for thought, text in parts:
      if not self._console.is_terminal:
        self._file.write(text)
      else:
        style = "dim" if thought else None
        self._console.out(printable(text), style=style, end="")
      self._file.flush()
      last = text or last
    if not last.endswith("\n"):
      self._file.write("\n")
      self._file.flush()


def printable(text: str) -> str:
  """`text` without what could steer a terminal."""
  return "".join(
    "\ufffd" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c
    for c in text
  )


@contextlib.contextmanager
def stoppable(parts: Iterable) -> Iterator[Iterator]:
  """`parts`, until Ctrl-C is pressed; pressed again, it interrupts."""
  pressed = False

  def press(signum, frame):
    nonlocal pressed
    del signum, frame
    if pressed:
      raise KeyboardInterrupt
    pressed = True

  def until_pressed():
    for part in parts:
      yield part
      if pressed:
        return

  before = signal.signal(signal.SIGINT, press)
  try:
    yield until_pressed()
  finally:
    signal.signal(signal.SIGINT, before)


def open_conversation(options: flags.FlagValues) -> Conversation:
  """The model and the tokenizer that the flags name, ready to be asked."""
  path = model_directory(options)
  words = tokenizer.load(path, bos=options.bos)
  template = pick_template(options.template, words)
  messages = []
  if options.system:
    messages = [{"role": "system", "content": clean(options.system)}]
  question = {"role": "user", "content": "?"}
  chat.prompt([*messages, question], template, words)  # Before a long load.

  import jax  # A wrong command need not wait for it.

  from r1jax.models.transformer import Transformer
  from r1jax.rollouts.stream import Stream
  from r1jax.training import models

  process.start()
  dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  sizes, params = models.load(
    "pretrained", path=path, dtype=dtype, compute_dtype=dtype
  )
  if words.vocab_size > sizes.vocab_size:
    raise ValueError(
      f"{path}: the tokenizer has {words.vocab_size} tokens, but the model "
      f"knows {sizes.vocab_size}"
    )
  stream = Stream(
    Transformer(sizes),
    params,
    vocab_size=words.vocab_size,
    stop_ids={*words.eos_ids, chat.end_of_turn(template, words)},
    temperature=options.temperature,
    top_p=options.top_p,
    seed=options.seed,
  )
  return Conversation(
    words, template, stream.complete, options.max_tokens, messages
  )


def model_directory(options: flags.FlagValues) -> str:
  """The directory that --model names."""
  if options.model is None:
    raise ValueError("no --model; name the directory of a model")
  if not pathlib.Path(options.model).is_dir():
    from r1jax import hf  # It imports JAX, which takes a second.

    hf.directory(options.model)
  return options.model


def pick_template(
  name: str | None, words: chat.ChatTokenizer
) -> templates.Template:
  """The template of that name; None is the model's own, or R1-Zero's."""
  own = "r1_zero" if words.chat_template is None else templates.OWN
  return templates.find(name or own, words)


def clean(text: str) -> str:
  """`text` as UTF-8 can write it."""
  return text.encode("utf-8", "replace").decode()


def converse(conversation: Conversation, screen: Screen) -> None:
  """Asks what a person types, until they leave."""
  with contextlib.suppress(ImportError):
    import readline  # noqa: F401 - Lets `input` edit its line.
  while True:
    try:
      question = clean(input("> ")).strip()
    except EOFError:
      print()
      return
    if not question:
      continue
    answer = conversation.ask(question)
    try:
      with stoppable(answer) as parts:
        screen.show(parts)
    except ValueError as error:
      print(f"error: {configs.one_line(error)}", file=sys.stderr, flush=True)
    finally:
      answer.close()


def main() -> None:
  """Answers the one question that is given, or all that are typed."""
  options = flags.FLAGS
  model_directory(options)  # Before a question is waited for.
  question = options.prompt
  if question is None and not sys.stdin.isatty():
    question = sys.stdin.read()
  if question is not None and not question.strip():
    raise ValueError("the question is empty; give it by --prompt or type it")
  conversation = open_conversation(options)
  screen = Screen()
  if question is not None:
    screen.show(conversation.ask(clean(question).strip()))
    return
  print("Ctrl-C stops an answer, Ctrl-D leaves.", file=sys.stderr)
  if isinstance(conversation.template, templates.QuestionOnly):
    print("This template sees one question alone.", file=sys.stderr)
  converse(conversation, screen)


def define_flags() -> None:
  """Defines the flags that `main` reads."""
  flags.DEFINE_string("model", None, "Directory of a model and its tokenizer.")
  flags.DEFINE_string("prompt", None, "Ask this alone, and leave.")
  flags.DEFINE_string("system", "", "A system message; R1 is best without.")
  flags.DEFINE_string(
    "template",
    None,
    "How a conversation is written: as the model's own 'chat' template does, "
    f"as {', '.join(templates.TEMPLATES)}, or as a text with {{question}} in "
    "it; if not given, chat, or r1_zero if the model has none of its own.",
  )
  flags.DEFINE_bool(
    "bos",
    None,
    "Whether BOS stands before a question in r1_zero or plain, as in training; "
    "if not given, as the tokenizer has it. Other templates write their own.",
  )
  flags.DEFINE_float(
    "temperature", 0.6, "Of sampling; 0 is greedy.", lower_bound=0
  )
  flags.DEFINE_float(
    "top_p", 0.95, "Share of the probability to draw from.", upper_bound=1
  )
  flags.DEFINE_integer(
    "max_tokens", 32_768, "Of an answer, its thought included.", lower_bound=1
  )
  flags.DEFINE_integer("seed", 0, "Of sampling.")
