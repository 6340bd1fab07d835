"""One epoch of packed rows with `datasets` and TRL, for `sft_data`.

It runs in an interpreter with these packages, and imports nothing of r1jax.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path


def used_memory() -> int:
  """The memory of this process in bytes; 0 where /proc does not exist."""
  status = Path("/proc/self/status")
  if not status.is_file():
    return 0
  lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
  return int(lines["VmRSS"].split()[0]) * 1024


def main() -> None:
  """Prints the seconds, tokens, slots and memory as JSON."""
  import datasets
  import transformers
  import trl

  parser = argparse.ArgumentParser()
  for name, kind in dict(path=str, tokenizer=str, width=int, batch=int).items():
    parser.add_argument(f"--{name}", type=kind, required=True)
  flags = parser.parse_args()
  words = transformers.PreTrainedTokenizerFast.from_pretrained(flags.tokenizer)
  datasets.disable_progress_bars()
  before, began = used_memory(), time.perf_counter()
  with tempfile.TemporaryDirectory() as cache:
    rows = datasets.load_dataset(
      "json", data_files=flags.path, split="train", cache_dir=cache
    )
    rows = rows.shuffle(seed=0).map(
      lambda row: {
        "input_ids": words.apply_chat_template(
          row["messages"], return_dict=False
        )
      },
      remove_columns=rows.column_names,
    )
    packed = trl.pack_dataset(rows, seq_length=flags.width, strategy="bfd")
    tokens = count = 0
    for batch in packed.iter(batch_size=8):
      tokens += sum(map(len, batch["input_ids"]))
      count += len(batch["input_ids"])
    seconds = time.perf_counter() - began
    del rows, packed
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  print(
    json.dumps(
      {
        "seconds": round(seconds, 1),
        "tokens": tokens,
        "slots": count * flags.width,
        "tokens_per_s": round(tokens / seconds),
        "fill": round(tokens / (count * flags.width), 3),
        "memory_bytes": peak - before,
        "versions": {m.__name__: m.__version__ for m in (datasets, trl)},
      }
    )
  )


if __name__ == "__main__":
  main()
