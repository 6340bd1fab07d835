r"""Published evaluations: how their questions are asked, and how often.

The problems themselves are read from files of the user.

The paper (arXiv:2501.12948v2, app. D.1 and J) samples each problem of AIME and
GPQA 64 times, of MATH-500 16 times, and of LiveCodeBench 8 times, and gives the
prompts of these. Where it gives no number, ours is 4. Other conventions ask in
their own words: those of simple-evals (github.com/openai/simple-evals), and of
lm-evaluation-harness's zero-shot tasks.
"""

from typing import Any, NamedTuple

from r1jax import config

QUESTION = "{question}"
BOXED = (
  "{question}\nPlease reason step by step, and put your final answer within "
  "\\boxed{}."
)
LETTER = (
  "Answer the following multiple choice question. The last line of your "
  "response should be of the following format: 'ANSWER: $LETTER' (without "
  "quotes) where LETTER is one of ABCD. Think step by step before answering."
  "\n\n{question}"
)
SIMPLE_LETTER = LETTER.replace("ANSWER", "Answer")
SIMPLE_MATH = (
  "Solve the following math problem step by step. The last line of your "
  "response should be of the form Answer: $ANSWER (without quotes) where "
  "$ANSWER is the answer to the problem.\n\n{question}\n\nRemember to put your "
  'answer on its own line after "Answer:", and you do not need to use a '
  "\\boxed command."
)
HARNESS_MATH = "Question: {question}\nAnswer:"


class Benchmark(NamedTuple):
  """How a set of problems is read and asked."""

  domain: str  # It selects the grader; "livecodebench" for its own files.
  samples: int  # Completions of a problem.
  prompts: dict[str, str] = {}  # Text around a question, by convention.


_MATH = {"paper": BOXED, "simple_evals": SIMPLE_MATH, "lm_eval": HARNESS_MATH}
_CHOICE = {"paper": LETTER, "simple_evals": SIMPLE_LETTER}
BENCHMARKS = {
  "aime24": Benchmark("math", 64, _MATH),
  "aime25": Benchmark("math", 64, _MATH),
  "amc23": Benchmark("math", 4, _MATH),
  "cmath": Benchmark("math", 4, _MATH),
  "codecontests": Benchmark("code", 4),
  "countdown": Benchmark("countdown", 4),
  "gaokao": Benchmark("math", 4, _MATH),
  "gpqa": Benchmark("choice", 64, _CHOICE),
  "gsm8k": Benchmark("math", 4, _MATH),
  "humaneval": Benchmark("code", 4),
  "ifeval": Benchmark("instructions", 4),
  "livecodebench": Benchmark("livecodebench", 8),
  "math500": Benchmark("math", 16, _MATH),
  "mbpp": Benchmark("code", 4),
  "mgsm": Benchmark("math", 4, _MATH),
  "minerva": Benchmark("math", 4, _MATH),
  "mmlu": Benchmark("choice", 4, _CHOICE),
  "olympiadbench": Benchmark("math", 4, _MATH),
}
CONVENTIONS = ("paper", "simple_evals", "lm_eval")


def section(
  name: str,
  path: str,
  *,
  convention: str = "paper",
  samples: int | None = None,
  count: int = 1_000_000,
) -> dict[str, Any]:
  """The set of problems of a benchmark, as `training.evaluate` takes it.

  Args:
    name: in BENCHMARKS.
    path: of the file with the problems.
    convention: whose prompt it is asked with. A benchmark without a prompt of
      its own asks the bare question.
    samples: completions of a problem; None for the benchmark's own number.
    count: the most problems of a task.

  Raises ValueError for an unknown name, or a convention that does not have it.
  """
  if name not in BENCHMARKS:
    raise ValueError(config.unknown("benchmark", name, BENCHMARKS))
  if convention not in CONVENTIONS:
    raise ValueError(config.unknown("convention", convention, CONVENTIONS))
  benchmark = BENCHMARKS[name]
  if benchmark.prompts and convention not in benchmark.prompts:
    raise ValueError(
      f"{convention!r} has no prompt for {name!r}; there is "
      f"{', '.join(benchmark.prompts)}"
    )
  dataset: dict[str, Any] = dict(name="livecodebench", path=path)
  if benchmark.domain != "livecodebench":
    dataset = dict(
      name="problems",
      path=path,
      domain=f"{benchmark.domain}/{name}",
      prompt=benchmark.prompts.get(convention, QUESTION),
    )
  return dict(
    dataset=dataset, samples=samples or benchmark.samples, count=count
  )
