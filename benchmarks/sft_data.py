"""From conversations in a file to packed batches, beside `datasets` and TRL.

    python -m benchmarks.sft_data --samples=100000 --peer_python=.trl/bin/python

Conversations of log-normal lengths (sigma 1), with text from the problems of
MATH in `DATA`, are written to JSON lines. Both sides read them in one epoch,
encode them with DeepSeek-R1's template and tokenizer, and pack them best-fit
into rows. Ours draws each batch from a permutation, makes the weights of the
loss, and puts the batches on the device. The peer encodes the whole dataset
into a cache on disk, packs it, and iterates over its rows.

Memory is that of a process beyond what it had before it opened the file. The
peer runs in an interpreter of its own, and is left out without one.
"""

import gzip
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import command, peer_scripts, timing
from benchmarks.sft_data_trl import used_memory
from r1jax import data
from r1jax.data import jsonl, tokenizer
from r1jax.parallel.mesh import make_mesh
from r1jax.training import sft_batch

DATA = Path(os.environ.get("R1JAX_DATA", "../shared/data"))
TOKENIZER = DATA / "reference" / "deepseek_r1"
CHARACTERS = 3.0  # Of a token, about.


def sft_data(
  *,
  samples: int = 100_000,
  mean: float = 200.0,
  longest: int = 4096,
  batch: int = 128,
  kind: str = ".jsonl",
  peer_python: str | None = None,
  peer_timeout: float = 3600.0,
) -> dict:
  """Tokens per second and memory of both sides.

  Args:
    samples: number of conversations.
    mean: tokens of a conversation, about, on average.
    longest: slots of the widest row, and tokens of a conversation, about.
    batch: conversations of an update.
    kind: of the file that we read, ".jsonl", ".parquet" or ".array_record".
    peer_python: interpreter with `datasets` and TRL; None leaves them out.
    peer_timeout: seconds for the peer.
  """
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    lines = folder / "samples.jsonl"
    write(lines, samples, mean, longest)
    result = {
      "machine": {"cores": os.cpu_count()},
      "samples": samples,
      "file_bytes": lines.stat().st_size,
      "ours": ours(converted(lines, kind), batch, longest),
    }
    if peer_python and Path(peer_python).is_file():
      words = folder / "tokenizer"
      words.mkdir()
      packed = (TOKENIZER / "tokenizer.json.gz").read_bytes()
      (words / "tokenizer.json").write_bytes(gzip.decompress(packed))
      settings = (TOKENIZER / "tokenizer_config.json").read_bytes()
      (words / "tokenizer_config.json").write_bytes(settings)
      script = peer_scripts.Script(
        Path(peer_python), Path(__file__).with_name("sft_data_trl.py")
      )
      arguments = dict(path=lines, tokenizer=words, width=longest, batch=batch)
      theirs = peer_scripts.run(script, arguments, timeout=peer_timeout)
      result["trl"] = theirs
      if "error" not in theirs:
        ratio = (
          result["ours"]["tokens_per_s"] * theirs["seconds"] / theirs["tokens"]
        )
        result["ratio"] = round(ratio, 2)
    else:
      print("TRL is left out; see --peer_python", file=sys.stderr)
  return result


def write(path: Path, samples: int, mean: float, longest: int) -> None:
  """Writes conversations of random lengths as JSON lines."""
  problems = jsonl.read(DATA / "train" / "math_math_train.jsonl")
  text = "\n".join(row["problem"] for _, row in problems)
  rng = np.random.default_rng(0)
  sizes = rng.lognormal(np.log(mean) - 0.5, 1.0, samples)
  sizes = (np.clip(sizes, 8, 0.8 * longest) * CHARACTERS).astype(int)
  starts = rng.integers(0, len(text) - sizes.max(), samples)
  with path.open("w") as file:
    for i, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist())):
      cut = start + size // 5
      messages = [
        dict(role="user", content=text[start:cut]),
        dict(role="assistant", content=text[cut : start + size]),
      ]
      file.write(json.dumps(dict(id=str(i), messages=messages)) + "\n")


def converted(lines: Path, kind: str) -> Path:
  """The rows of JSON lines in a file of another kind."""
  path = lines.with_suffix(kind)
  if kind == ".parquet":
    import pyarrow.json
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.json.read_json(lines), path)
  elif kind == ".array_record":
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    with lines.open("rb") as rows:
      for row in rows:
        writer.write(row)
    writer.close()
  elif kind != ".jsonl":
    raise ValueError(f"kind is {kind!r}; .jsonl, .parquet or .array_record")
  return path


def ours(path: Path, batch: int, longest: int) -> dict:
  """One epoch of our batches."""
  words, mesh = tokenizer.load(str(TOKENIZER)), make_mesh(data=1)
  widths = tuple(longest >> i for i in range(4))
  totals = dict(tokens=0, learned=0, slots=0, too_long=0)
  before = used_memory()

  def epoch():
    dataset = data.load("conversations", path=str(path))
    read = lambda step: sft_batch.read_texts(
      dataset, "chat", words, count=batch, seed=0, step=step
    )
    with sft_batch.read_ahead(read, 0, len(dataset) // batch) as steps:
      for own in steps:
        texts, left_out = sft_batch.gather_fitting(own, longest)
        batches = sft_batch.make_batches(
          mesh, texts, dict(name="token_mean"), widths=widths, shard_rows=8
        )
        totals["tokens"] += sum(len(text.tokens) for text in texts)
        totals["learned"] += int(batches[0].num_targets)
        totals["slots"] += sum(x.weights.size for x in batches)
        totals["too_long"] += left_out

  seconds = timing.seconds(epoch)
  return {
    "seconds": round(seconds, 1),
    **totals,
    "tokens_per_s": round(totals["tokens"] / seconds),
    "fill": round(totals["tokens"] / totals["slots"], 3),
    "memory_bytes": timing.peak_memory() - before,
  }


if __name__ == "__main__":
  command.run(sft_data)
