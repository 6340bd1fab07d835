"""Problems of reasoning-gym in English and Chinese.

They are the problems of `r1jax.data.reasoning_gym`, of which each has one
language. Its library words them in English; the Chinese wordings are ours.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from r1jax.data import reasoning_gym
from r1jax.data.general import LANGUAGES, check_languages
from r1jax.types import Example

# Chinese wordings of each task, which use fields of the problem's metadata.
CHINESE: dict[str, tuple[str, ...]] = {
  "chain_sum": ("请给出算式的最后结果：{expression} =",),
  "spell_backward": ("请把单词倒过来写（例如：sun -> nus）：{word}",),
  "countdown": (
    "请用 {numbers} 各一次，写出等于 {target} 的算式，不写等号。",
    "请写出结果是 {target} 的算式，{numbers} 各用一次，不写等号。",
  ),
}


def load(
  *,
  tasks: Mapping[str, Mapping[str, Any]],
  split: str,
  size: int,
  seed: int,
  languages: Sequence[str] = LANGUAGES,
) -> "Bilingual":
  """Returns `size` examples, of each task in each of the languages in turn.

  `metadata["language"]` is the language of a problem.

  Args:
    tasks: as for `reasoning_gym.load`, among the tasks of CHINESE.
    split: "train" or "test". No problem is in both, in whatever language, and
      no problem is in "test" twice.
    size: the number of examples, which are generated on demand.
    seed: the seed of the problems.
    languages: those of the problems: "en" and "zh".

  Raises ValueError for a task without a Chinese wording, another language, and
  what `reasoning_gym.load` refuses.
  """
  check_languages(languages)
  for task in tasks.keys() - CHINESE.keys():
    raise ValueError(
      f"{task!r} has no Chinese wording; the tasks are {[*CHINESE]}"
    )
  problems = reasoning_gym.load(tasks=tasks, split=split, size=size, seed=seed)
  return Bilingual(problems, len(tasks), languages)


class Bilingual(Sequence[Example]):
  """The problems of a dataset, each in one of the languages."""

  def __init__(
    self,
    problems: Sequence[Example],
    num_tasks: int,
    languages: Sequence[str],
  ):
    self._problems, self._num_tasks = problems, num_tasks
    self._languages = tuple(languages)

  def __len__(self) -> int:
    return len(self._problems)

  def __getitem__(self, index: int) -> Example:
    example = self._problems[index]
    number = index % len(self) // self._num_tasks
    language = self._languages[number % len(self._languages)]
    prompt = example.prompt
    if language == "zh":
      task = example.domain.rpartition("/")[2]
      prompt = chinese(task, example.metadata, random.Random(example.id))
    return example._replace(
      prompt=prompt,
      id=f"{example.id}/{language}",
      metadata={**example.metadata, "language": language},
    )


def chinese(task: str, metadata: Mapping[str, Any], rng: random.Random) -> str:
  """Returns the Chinese wording of a problem, one of several at random."""
  return fill(rng.choice(CHINESE[task]), metadata)


def fill(wording: str, metadata: Mapping[str, Any]) -> str:
  """Returns a wording with the fields of a problem's metadata."""
  fields = dict(metadata)
  if "numbers" in fields:
    fields["numbers"] = ", ".join(map(str, fields["numbers"]))
  return wording.format(**fields)
