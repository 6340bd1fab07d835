"""Chat with a model.

    r1jax chat --model=r1jax/base

The directory holds a model in Hugging Face layout and its tokenizer. Answers
are streamed, with the thought dimmed; thoughts of earlier answers are not part
of the next prompt. Ctrl-C stops an answer; a second Ctrl-C, or Ctrl-D, exits.
Weights are float32 on a CPU and bfloat16 on an accelerator. To print a single
answer and nothing else:

    r1jax chat --model=r1jax/base --prompt="What is 17 + 25?"
    echo "What is 17 + 25?" | r1jax chat --model=r1jax/base

Errors are one line, with exit code 2 for wrong input and 1 for a bug; --debug
adds the stack trace.
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
from r1jax.data import chat, templates
from r1jax.data import tokenizer as tokenizers
from r1jax.runtime import process
from r1jax.tools.thoughts import ThoughtStream


@dataclasses.dataclass
class Conversation:
  """The messages of a chat, and the model that answers them."""

  tokenizer: chat.ChatTokenizer
  template: templates.Template
  complete: Callable[..., Iterator[int]]  # See `rollouts.stream.Stream`.
  max_tokens: int
  messages: list[templates.Message]

  def ask(self, question: str) -> Iterator[tuple[bool, str]]:
    """The answer as a stream of parts: (whether it is thought, text).

    The text that was read becomes a message, even if the stream was not read to
    its end. If nothing was read, the question is not kept either.
    """
    messages = [*self.messages, {"role": "user", "content": question}]
    prompt = chat.prompt(messages, self.template, self.tokenizer)
    parts = []
    ids = self.complete(
      prompt.ids, max_tokens=self.max_tokens, number=len(messages)
    )

    def texts():
      stream = tokenizers.TextStream(self.tokenizer)
      yield prompt.prefill
      for number in ids:
        parts.append(stream.push([number]))
        yield parts[-1]
      parts.append(stream.flush())
      yield parts[-1]

    try:
      yield from split_thought(texts())
    finally:
      if parts:
        answer = chat.without_thought("".join([prompt.prefill, *parts]))
        self.messages = [*messages, {"role": "assistant", "content": answer}]


def split_thought(texts: Iterable[str]) -> Iterator[tuple[bool, str]]:
  """A stream of (whether it is thought, text), from a stream of text.

  The thought is the start of an answer, from <think> to the first </think>,
  tags included. Text that may be the beginning of a tag is held back.
  """
  stream = ThoughtStream()
  for text in texts:
    yield from stream.push(text)
  yield from stream.flush()


class Screen:
  """Prints answers; on a terminal, thoughts are dimmed."""

  def __init__(self, file: io.TextIOBase | None = None):
    from rich.console import Console

    self._file = file or sys.stdout
    if hasattr(self._file, "reconfigure"):
      self._file.reconfigure(errors="replace")  # The terminal may lack Unicode.
    self._console = Console(file=self._file, highlight=False)

  def show(self, parts: Iterable[tuple[bool, str]]) -> None:
    """Prints an answer as it is streamed, and a final line break."""
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
  """`text` with terminal control characters replaced."""
  return "".join(
    "\ufffd" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c
    for c in text
  )


@contextlib.contextmanager
def until_interrupted(parts: Iterable) -> Iterator[Iterator]:
  """A block with `parts` that ends them at Ctrl-C; a second one interrupts."""
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
  """A conversation with the model and tokenizer that the flags name."""
  path = model_directory(options)
  tokenizer = tokenizers.load(path, bos=options.bos)
  template = pick_template(options.template, tokenizer)
  messages = []
  if options.system:
    messages = [{"role": "system", "content": clean(options.system)}]
  question = {"role": "user", "content": "?"}
  # Errors of the template show before the model is loaded, which takes long.
  chat.prompt([*messages, question], template, tokenizer)

  import jax  # Imported late, so that wrong flags are reported quickly.

  from r1jax.models.transformer import Transformer
  from r1jax.rollouts.stream import Stream
  from r1jax.training import models

  process.start()
  dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  sizes, params = models.load(
    "pretrained", path=path, dtype=dtype, compute_dtype=dtype
  )
  if tokenizer.vocab_size > sizes.vocab_size:
    raise ValueError(
      f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, but the model "
      f"has only {sizes.vocab_size}; use the tokenizer of the model"
    )
  stream = Stream(
    Transformer(sizes),
    params,
    tokenizer,
    stop_ids={*tokenizer.eos_ids, chat.end_of_turn(template, tokenizer)},
    temperature=options.temperature,
    top_p=options.top_p,
    seed=options.seed,
  )
  return Conversation(
    tokenizer, template, stream.complete, options.max_tokens, messages
  )


def model_directory(options: flags.FlagValues) -> str:
  """The directory that --model names; raises ValueError if there is none."""
  if options.model is None:
    raise ValueError("--model is not set; set it to the directory of a model")
  if not pathlib.Path(options.model).is_dir():
    from r1jax import hf  # It imports JAX, which takes a second.

    hf.directory(options.model)
  return options.model


def pick_template(
  name: str | None, tokenizer: chat.ChatTokenizer
) -> templates.Template:
  """The template of that name, or the default if it is None.

  The default is the model's chat template, or R1-Zero's if it has none.
  """
  default = "r1_zero" if tokenizer.chat_template is None else templates.CHAT
  return templates.find(name or default, tokenizer)


def clean(text: str) -> str:
  """`text` without surrogates, which UTF-8 cannot encode."""
  return text.encode("utf-8", "replace").decode()


def run_interactive(conversation: Conversation, screen: Screen) -> None:
  """Answers typed questions until the end of input."""
  with contextlib.suppress(ImportError):
    import readline  # noqa: F401 - Adds line editing to `input`.
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
      with until_interrupted(answer) as parts:
        screen.show(parts)
    except ValueError as error:
      print(f"error: {configs.one_line(error)}", file=sys.stderr, flush=True)
    finally:
      answer.close()


def main() -> None:
  """Answers the question of --prompt or standard input, or chats."""
  options = flags.FLAGS
  model_directory(options)  # Report a wrong --model before reading input.
  question = options.prompt
  if question is None and not sys.stdin.isatty():
    question = sys.stdin.read()
  if question is not None and not question.strip():
    raise ValueError("the question is empty; set --prompt or type a question")
  conversation = open_conversation(options)
  screen = Screen()
  if question is not None:
    screen.show(conversation.ask(clean(question).strip()))
    return
  print("Ctrl-C stops an answer, Ctrl-D exits.", file=sys.stderr)
  if isinstance(conversation.template, templates.QuestionOnly):
    print("This template uses the last question only.", file=sys.stderr)
  run_interactive(conversation, screen)


def define_flags() -> None:
  """Defines the flags that `main` reads."""
  flags.DEFINE_string("model", None, "Directory of a model and its tokenizer.")
  flags.DEFINE_string("prompt", None, "Answer this question only, and exit.")
  flags.DEFINE_string("system", "", "A system message; R1 works best without.")
  flags.DEFINE_string(
    "template",
    None,
    "The chat template: 'chat' for that of the model, one of "
    f"{', '.join(templates.TEMPLATES)}, or a text that contains {{question}}; "
    "by default chat, or r1_zero if the model has no chat template.",
  )
  flags.DEFINE_bool(
    "bos",
    None,
    "Whether prompts begin with BOS in the templates r1_zero and plain; by "
    "default as the tokenizer is configured. Chat templates write their own.",
  )
  flags.DEFINE_float(
    "temperature", 0.6, "Sampling temperature; 0 is greedy.", lower_bound=0
  )
  flags.DEFINE_float(
    "top_p", 0.95, "Cumulative probability for top-p sampling.", upper_bound=1
  )
  flags.DEFINE_integer(
    "max_tokens",
    32_768,
    "The most tokens of an answer, thought included.",
    lower_bound=1,
  )
  flags.DEFINE_integer("seed", 0, "Seed of sampling.")
