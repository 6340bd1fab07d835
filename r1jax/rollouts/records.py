"""Rounds as files: what was sampled, what it was worth, and how to replay it.

    WORKDIR/rollouts/000003.jsonl.gz    round 3, one line per completion
    WORKDIR/rollouts/000003-00001-of-00008.jsonl.gz    those of process 1 of 8

Each process of a job writes the completions that it has read and graded. They
are whole groups, in the order of the round; `load` puts the files together.

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
import collections
import contextlib
import gzip
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

# The files of a round, after its number; "-00001-of-00008" is process 1 of 8.
NAME = re.compile(r"\d+(?:-(\d+)-of-(\d+))?\.jsonl(?:\.gz)?")
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
  written: Sequence[Completion | None],
  scores: Scores,
  advantages: np.ndarray,
  facts: Mapping[str, Any] = {},
  compress: bool = True,
) -> None:
  """Writes what this process has read of a round, whole or not at all.

  All processes of a job must call it: the recorded experts of one prompt after
  the other are gathered on all of them. Files of the round that an earlier
  start, of another number of processes, has left are deleted.

  Args:
    workdir: of the run.
    round: from 0.
    step: of the policy that sampled.
    rollout: on the host, but for its experts.
    examples: of each completion [B].
    written: the completions as text [B]; None for those that another process
      has read, and writes.
    scores: what they are worth [B].
    advantages: [P, G]
    facts: what else the loop needs to repeat the round, as JSON has it.
    compress: with gzip.

  Raises ValueError if there is anything beyond a length: it would be lost.
  """
  own = np.array([completion is not None for completion in written])
  at = own.reshape(rollout.lengths.shape)
  within = within_lengths(rollout.lengths[at], rollout.completions.shape[2])
  if np.any(rollout.logprobs[at][~rollout.sampled_mask[at]]) or np.any(
    rollout.completions[at][~within]
  ):
    raise ValueError("the rollout is not 0 beyond the ends of its completions")
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
  folder = pathlib.Path(workdir) / "rollouts"
  folder.mkdir(parents=True, exist_ok=True)
  writer, name = (jax.process_index(), jax.process_count()), f"{round:06}"
  if writer[1] > 1:
    name += "-{:05}-of-{:05}".format(*writer)
  path = folder / (name + (".jsonl.gz" if compress else ".jsonl"))
  if own.any():
    _write(path, folder / f"{name}.draft", lines, compress)
  else:
    collections.deque(lines, maxlen=0)  # It takes part in gathering experts.
  for file, (process, count) in _files(folder, round).items():
    stale = file != path or not own.any()
    if stale and (count != writer[1] or process == writer[0]):
      file.unlink(missing_ok=True)


def _write(
  path: pathlib.Path,
  draft: pathlib.Path,
  lines: Iterable[str],
  compress: bool,
) -> None:
  """Writes a file under another name first, so that it is always whole."""
  with open(draft, "wb") as file:
    with contextlib.ExitStack() as stack:
      out = file
      if compress:  # Without a name and a time, for the same bytes each time.
        out = stack.enter_context(gzip.GzipFile("", "wb", 1, file, mtime=0))
      out.writelines(line.encode() for line in lines)
    file.flush()
    os.fsync(file.fileno())
  os.replace(draft, path)


def _files(
  folder: pathlib.Path, round: int
) -> dict[pathlib.Path, tuple[int, int]]:
  """The files of a round, and which process of how many wrote each."""
  found = {}
  for path in sorted(folder.glob(f"{round:06}[-.]*")):
    if match := NAME.fullmatch(path.name):
      found[path] = int(match[1] or 0), int(match[2] or 1)
  return found


def _lines(
  rollout, examples, written, scores, advantages
) -> Iterator[dict[str, Any]]:
  num_prompts, group_size = rollout.lengths.shape
  for i, (example, completion) in enumerate(
    zip(examples, written, strict=True)
  ):
    p, g = divmod(i, group_size)
    if rollout.experts is not None and g == 0:
      experts, of_prompt = jax.device_get(replay.of_prompt(rollout.experts, p))
    if completion is None:
      continue
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
      line["experts"] = _encode(experts[g])
      if g == 0:  # Those of the prompt, once for the group.
        line["prompt_experts"] = _encode(of_prompt)
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
  # Both forms of a file are there only after a write that was cut short.
  files = [*{who: path for path, who in _files(folder, round).items()}.values()]
  if not files:
    there = sorted(p.name for p in folder.glob("*.jsonl*"))
    have = f"from {there[0]} to {there[-1]}" if there else "none"
    raise FileNotFoundError(
      f"{folder}: no rollouts of round {round}, there is {have}; they are "
      "written by a run that dumps them"
    )
  lines: dict[tuple[int, int], dict[str, Any]] = {}
  shape, where = None, ""
  for path in files:
    for number, line in jsonl.read(path, surrogates=True):
      where = f"{path}:{number}"
      try:
        shape = shape or tuple(map(int, line["shape"]))
        decoded = _decoded(line, shape)
        if decoded["row"] in lines:
          raise ValueError(f"row {[*decoded['row']]} is there twice")
        lines[decoded["row"]] = decoded
      except (KeyError, TypeError, ValueError, IndexError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(
          f"{where}: no record of a completion: {what}"
        ) from None
  if shape is None:
    raise ValueError(f"{files[0]}: no records in it")
  rows = [*np.ndindex(shape[:2])]
  if missing := [row for row in rows if row not in lines]:
    raise ValueError(
      f"{where}: it ends after {len(lines)} of {len(rows)} completions, and "
      f"row {[*missing[0]]} is missing; a round needs all processes' files"
    )
  if size not in (None, shape[:2]):
    raise ValueError(
      f"{files[0]}: {shape[0]} prompts and {shape[1]} completions of each, but "
      f"the config has prompts_per_round {size[0]} and group_size {size[1]}"
    )
  return _record([lines[row] for row in rows], shape)


def _decoded(line: dict[str, Any], shape: tuple) -> dict[str, Any]:
  """The line with arrays for tokens and bytes, which fit the shape."""
  num_prompts, group_size, prompt_width, width = shape
  p, g = row = tuple(map(int, line["row"]))
  if line["shape"] != [*shape] or not (
    0 <= p < num_prompts and 0 <= g < group_size
  ):
    raise ValueError(
      f"row {line['row']} of {line['shape']} in a round of {[*shape]}"
    )
  line = line | {"row": row}
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
