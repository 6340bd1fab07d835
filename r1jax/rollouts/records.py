"""Rounds as files: what was sampled, what it was worth, and how to replay it.

    WORKDIR/rollouts/000003.jsonl.gz    round 3, one line per completion

A line holds `round`, `step` (of the policy that sampled), `row` [prompt,
completion], `shape` [P, G, Tp, Tc] of the round; `id`, `domain`, `prompt`,
`answer`, `completion` as text; `rewards` by name, their weighted sum `reward`,
`advantage`, and the `feedback` of a program's tests; `finish`, `length`,
`max_tokens`, `prefill`; `prompt_tokens` and `completion_tokens`, and where the
latter were `forced`, if any were; `logprobs` and, where recorded, `experts`, as
bytes in base64, which come back bit for bit;
`counts` of the graders, and `facts` that the loop wants back. A null is a
reward that could not be graded; one that does not apply is not there. What is
not listed here is not read.

The same round gives the same bytes, so that a run that resumes writes again
what it wrote before.
"""

import base64
import contextlib
import gzip
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from r1jax.data import jsonl
from r1jax.rewards import Scores
from r1jax.rollouts import replay
from r1jax.types import (
  FINISH_LENGTH,
  FINISH_STOP,
  Completion,
  Example,
  Rollout,
  within_lengths,
)

FINISH = {"stop": FINISH_STOP, "length": FINISH_LENGTH}


class Record(NamedTuple):
  """A round as it was, for B = P * G completions."""

  step: int  # Of the policy that sampled it.
  rollout: Rollout
  examples: list[Example]  # [B]; without metadata, which is for graders.
  written: list[Completion]  # [B]
  scores: Scores  # [B]
  advantages: np.ndarray  # float64 [P, G]
  facts: dict[str, Any]


def dump(
  workdir: str | os.PathLike,
  round: int,
  *,
  step: int,
  rollout: Rollout,
  examples: Sequence[Example],
  written: Sequence[Completion],
  scores: Scores,
  advantages: np.ndarray,
  facts: Mapping[str, Any] = {},
  compress: bool = True,
) -> None:
  """Writes a round, whole or not at all; only the first process of a job does.

  All processes must call it: the recorded experts of one prompt after the other
  are gathered, and the first process takes them to the host.

  Args:
    workdir: of the run.
    round: from 0.
    step: of the policy that sampled.
    rollout: on the host, but for its experts.
    examples: of each completion [B].
    written: the completions as text [B].
    scores: what they are worth [B].
    advantages: [P, G]
    facts: what else the loop needs to repeat the round, as JSON has it.
    compress: with gzip.

  Raises ValueError if there is anything beyond a length: it would be lost.
  """
  within = within_lengths(rollout.lengths, rollout.completions.shape[2])
  if np.any(rollout.logprobs[~rollout.sampled_mask]) or np.any(
    rollout.completions[~within]
  ):
    raise ValueError("the rollout is not 0 beyond the ends of its completions")
  if jax.process_index():
    if rollout.experts is not None:
      for p in range(len(rollout.prompts)):
        replay.of_prompt(rollout.experts, p)
    return
  shared = {
    "round": round,
    "step": int(step),
    "shape": [*rollout.prompts.shape[:1], *rollout.completions.shape[1:2]]
    + [rollout.prompts.shape[1], rollout.completions.shape[2]],
  }
  last = {"counts": scores.counts, "facts": dict(facts)}
  lines = (
    json.dumps(shared | line | last, allow_nan=False) + "\n"
    for line in _lines(rollout, examples, written, scores, advantages)
  )
  plain = pathlib.Path(workdir) / "rollouts" / f"{round:06}.jsonl"
  zipped = plain.with_name(plain.name + ".gz")
  plain.parent.mkdir(parents=True, exist_ok=True)
  draft = plain.with_suffix(".draft")
  with open(draft, "wb") as file:
    with contextlib.ExitStack() as stack:
      out = file
      if compress:  # Without a name and a time, for the same bytes each time.
        out = stack.enter_context(gzip.GzipFile("", "wb", 1, file, mtime=0))
      out.writelines(line.encode() for line in lines)
    file.flush()
    os.fsync(file.fileno())
  os.replace(draft, zipped if compress else plain)
  (plain if compress else zipped).unlink(missing_ok=True)


def _lines(
  rollout, examples, written, scores, advantages
) -> Iterator[dict[str, Any]]:
  num_prompts, group_size = rollout.lengths.shape
  for i, (example, completion) in enumerate(
    zip(examples, written, strict=True)
  ):
    p, g = divmod(i, group_size)
    end = int(rollout.lengths[p, g])
    line = {
      "row": [p, g],
      "id": example.id,
      "domain": example.domain,
      "prompt": example.prompt,
      "answer": example.answer,
      "completion": completion.text,
      "rewards": {
        name: _known(values[i])
        for name, values in scores.parts.items()
        if name not in scores.applies or scores.applies[name][i]
      },
      "reward": _known(scores.total[i]),
      "advantage": float(advantages[p, g]),
      "feedback": scores.feedback[i] if scores.feedback else "",
      "finish": completion.finish,
      "length": end,
      "max_tokens": completion.max_tokens,
      "prefill": completion.prefill,
      "prompt_tokens": rollout.prompts[
        p, : int(rollout.prompt_lengths[p])
      ].tolist(),
      "completion_tokens": rollout.completions[p, g, :end].tolist(),
      "logprobs": _encode(rollout.logprobs[p, g, :end]),
    }
    if not rollout.sampled_mask[p, g, :end].all():
      line["forced"] = np.flatnonzero(
        ~rollout.sampled_mask[p, g, :end]
      ).tolist()
    if rollout.experts is not None:
      if g == 0:  # Those of the prompt, once for the group.
        experts, of_prompt = map(
          np.asarray, replay.of_prompt(rollout.experts, p)
        )
        line["prompt_experts"] = _encode(of_prompt)
      line["experts"] = _encode(experts[g])
    yield line


def load(
  workdir: str | os.PathLike,
  round: int,
  *,
  size: tuple[int, int] | None = None,
) -> Record:
  """The round that `dump` wrote; arrays, rewards and text are bit for bit.

  Its experts, if there are any, are on the host; see `replay.to_device`.

  `size` is the (P, G) that it must have; None takes any.

  Raises FileNotFoundError if there is none, and ValueError that names the file
  and the line if it is broken, not whole or of another size.
  """
  folder = pathlib.Path(workdir) / "rollouts"
  names = (f"{round:06}.jsonl.gz", f"{round:06}.jsonl")
  path = next((folder / n for n in names if (folder / n).exists()), None)
  if path is None:
    there = sorted(p.name for p in folder.glob("*.jsonl*"))
    have = f"from {there[0]} to {there[-1]}" if there else "none"
    raise FileNotFoundError(
      f"{folder}: no rollouts of round {round}, there is {have}; they are "
      "written by a run that dumps them"
    )
  lines, shape, number = [], None, 0
  for number, line in jsonl.read(path, surrogates=True):
    try:
      shape = shape or tuple(map(int, line["shape"]))
      lines.append(_decoded(line, shape, len(lines)))
    except (KeyError, TypeError, ValueError, IndexError) as error:
      what = f"no {error}" if isinstance(error, KeyError) else error
      raise ValueError(
        f"{path}:{number}: no record of a completion: {what}"
      ) from None
  if shape is None or len(lines) != shape[0] * shape[1]:
    want = "any" if shape is None else shape[0] * shape[1]
    raise ValueError(
      f"{path}:{number}: it ends after {len(lines)} of {want} completions"
    )
  if size not in (None, shape[:2]):
    raise ValueError(
      f"{path}: {shape[0]} prompts and {shape[1]} completions of each, but the "
      f"config has prompts_per_round {size[0]} and group_size {size[1]}"
    )
  return _record(lines, shape)


def _decoded(line: dict[str, Any], shape: tuple, index: int) -> dict[str, Any]:
  """The line with arrays for tokens and bytes, which fit the shape."""
  num_prompts, group_size, prompt_width, width = shape
  row = [*divmod(index, group_size)]
  if line["row"] != row or line["shape"] != [*shape]:
    raise ValueError(f"row {line['row']} of {line['shape']} follows {row}")
  line = dict(line)
  for name, limit in (("prompt", prompt_width), ("completion", width)):
    tokens = np.array(line[f"{name}_tokens"], np.int32)
    line[f"{name}_tokens"] = _filled(tokens, limit)
    line[f"{name}_length"] = len(tokens)
  line["finish_code"] = FINISH[line["finish"]]
  values = _decode(line["logprobs"])
  if len(values) != line["completion_length"]:
    raise ValueError(
      f"{len(values)} log-probabilities of {line['completion_length']} tokens"
    )
  line["logprobs"] = _filled(values, width)
  sampled = np.arange(width) < len(values)
  sampled[np.array(line.get("forced", ()), int)] = False
  line["sampled_mask"] = sampled
  for name in {"experts", "prompt_experts"} & line.keys():
    line[name] = _decode(line[name])
  for name in ("id", "domain", "prompt", "answer", "completion", "prefill"):
    if not isinstance(line[name], str):
      raise ValueError(f"{name!r} is {line[name]!r:.80}, but should be text")
  line["reward"] = _number(line["reward"])
  line["rewards"] = {k: _number(v) for k, v in line["rewards"].items()}
  line["advantage"] = float(line["advantage"])
  return line


def _record(lines: Sequence[dict[str, Any]], shape: tuple) -> Record:
  groups = lines[:: shape[1]]
  stack = lambda name: np.stack([line[name] for line in lines]).reshape(
    *shape[:2], *np.shape(lines[0][name])
  )
  experts = None
  if "experts" in lines[0]:
    of_prompts = np.stack([line["prompt_experts"] for line in groups])
    experts = replay.from_host(stack("experts"), of_prompts)
  rollout = Rollout(
    prompts=np.stack([line["prompt_tokens"] for line in groups]),
    prompt_lengths=np.int32([line["prompt_length"] for line in groups]),
    completions=stack("completion_tokens"),
    lengths=np.int32(stack("completion_length")),
    finish=np.int32(stack("finish_code")),
    sampled_mask=stack("sampled_mask"),
    logprobs=stack("logprobs"),
    experts=experts,
  )
  names = [*dict.fromkeys(name for line in lines for name in line["rewards"])]
  return Record(
    step=int(lines[0]["step"]),
    rollout=rollout,
    examples=[
      Example(line["prompt"], line["answer"], line["domain"], line["id"])
      for line in lines
    ],
    written=[
      Completion(
        text=line["completion"],
        num_tokens=line["completion_length"],
        max_tokens=line["max_tokens"],
        finish=line["finish"],
        prefill=line["prefill"],
      )
      for line in lines
    ],
    scores=Scores(
      total=np.float64([line["reward"] for line in lines]),
      parts={
        name: np.float64([line["rewards"].get(name, np.nan) for line in lines])
        for name in names
      },
      applies={
        name: np.array([name in line["rewards"] for line in lines])
        for name in names
      },
      counts=lines[0]["counts"],
      feedback=[line.get("feedback", "") for line in lines],
    ),
    advantages=np.float64(stack("advantage")),
    facts=lines[0]["facts"],
  )


def _known(value: float) -> float | None:
  return None if np.isnan(value) else float(value)


def _number(value: float | None) -> float:
  return np.nan if value is None else float(value)


def _filled(values: np.ndarray, width: int) -> np.ndarray:
  """Padded with zeros; ValueError if there is no room."""
  return np.pad(values, (0, width - len(values)))


def _encode(array: np.ndarray) -> dict[str, Any]:
  """An array as JSON, every bit of it; little-endian."""
  array = np.asarray(array, np.asarray(array).dtype.newbyteorder("<"))
  return {
    "dtype": array.dtype.name,
    "shape": [*array.shape],
    "base64": base64.b64encode(array.tobytes()).decode(),
  }


def _decode(encoded: Mapping[str, Any]) -> np.ndarray:
  dtype = np.dtype(encoded["dtype"])
  data = base64.b64decode(encoded["base64"], validate=True)
  array = np.frombuffer(data, dtype.newbyteorder("<"))
  return array.reshape(encoded["shape"]).astype(dtype)
