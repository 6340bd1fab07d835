"""The report: one page that is whole, safe, honest about broken files."""

import json
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from r1jax.tools.report import charts, command, figures

HOSTILE = (
  "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>",
  "<think>wait</think><answer>\u2028]]>&amp;\x00 {{ 7 * 7 }} {% x %}</answer>",
  '" onclick="alert(3)" \ud800 $\\frac{1}{0$',
)


def synthetic_workdir(
  folder: Path,
  num_rounds: int = 60,
  seed: int = 0,
  gain: float = 1.0,
  keep: str = "",
) -> Path:
  """A workdir as a run of R1-Zero leaves it, with made-up numbers.

  The curves rise by `gain` times what a good run's do; 0 looks like a control.
  Only metrics whose name matches `keep` are written.
  """
  random = np.random.default_rng(seed)
  folder.mkdir(parents=True, exist_ok=True)
  tasks = {"chain_sum": 0.42, "spell_backward": 0.31, "countdown": 0.24}
  metrics, completions = [], []
  for number in range(num_rounds + 1):
    step, share = 4 * number, number / num_rounds
    grown = gain / (1 + np.exp(-9 * (share - 0.4)))
    accuracy = {t: base + (0.93 - base) * grown for t, base in tasks.items()}
    length = 38 + 41 * grown * (0.6 + 0.4 * share)
    if number % 10 == 0:
      metrics.append(
        {"step": step, "time": 9.0 * number, "perf/eval_time": 4.2}
        | _evaluation(random, accuracy, length, number in (0, num_rounds))
      )
    if number == num_rounds:
      break
    step += 4

    def noise(scale):
      return float(random.normal(0, scale))

    mean = float(np.mean(list(accuracy.values()))) + noise(0.04)
    experts = random.dirichlet(np.full(8, 12 + 50 * share), 3)
    row = {
      "step": step, "time": 9.0 * number + 8, "round": number + 1,
      "reward/mean": mean + 0.5 + 0.5 * grown, "reward/std": 0.8 - 0.4 * grown,
      "reward/accuracy/mean": mean,
      "reward/format/mean": min(1.0, 0.5 + 0.5 * grown + abs(noise(0.02))),
      "reward/frac_zero_std": max(0.0, 0.05 + 0.4 * grown + noise(0.05)),
      "advantage/std": 0.93 + noise(0.01), "loss/total": noise(0.01),
      "loss/policy": noise(0.01), "loss/kl": 0.0004 + abs(noise(0.0002)),
      "kl/ref": 0.02 * (number % 20) / 20 + abs(noise(0.002)),
      "kl/old": abs(noise(1e-4)), "entropy/mean": 0.62 - 0.35 * grown,
      "ratio/max": 1.4 + abs(noise(0.4)),
      "clip_ratio/region": 0.004 + abs(noise(0.002)),
      "clip_ratio/low": 0.001 + abs(noise(0.001)),
      "clip_ratio/high": 0.003 + abs(noise(0.001)),
      "completions/mean_length": length + noise(2),
      "completions/max_length": 128.0,
      "completions/clipped_ratio": abs(noise(0.01)),
      "sampling/logp_diff_mean": abs(noise(1e-6)),
      "sampling/logp_diff_max": abs(noise(1e-5)),
      "optim/grad_norm": 0.4 + abs(noise(0.1)),
      "optim/lr": 3e-4 * min(1, number / 10),
      "router/load_cv": float((experts * 8).std(1).mean()),
      "reflection/wait": 0.08 + 0.9 * grown + abs(noise(0.04)),
      "reflection/check": 0.2 + 0.7 * grown + abs(noise(0.05)),
      "reflection/mistake": 0.02 + 0.15 * grown + abs(noise(0.01)),
      "perf/tokens_per_s": 5200 + noise(200), "perf/gen_time": 4 + 3 * grown,
      "perf/reward_time": 0.2, "perf/logprob_time": 0.9,
      "perf/train_time": 2.7 + grown, "perf/step_time": 7.8 + 4 * grown,
      "optim/update_norm": None if number == 3 else 0.01,
    }  # fmt: skip
    row |= {f"router/load/{1 + i}": e.tolist() for i, e in enumerate(experts)}
    for task, value in accuracy.items():
      row[f"completions/tasks/{task}/accuracy"] = value + noise(0.06)
    metrics.append(row)
    if number % 3 == 0:
      completions += _completions(random, step, number, accuracy)
  for text in HOSTILE:
    completions[1]["prompt"] += text
    completions[2] |= {"answer": text, "task": text}
    completions[3]["completion"] += text
  metrics = [
    {k: v for k, v in row.items() if k == "step" or re.search(keep, k)}
    for row in metrics
  ]
  _write_lines(folder / "metrics.jsonl", metrics)
  _write_lines(folder / "completions.jsonl", completions)
  config = {"seed": seed, "loss": {"clip_epsilon": 0.2}, "note": HOSTILE[0]}
  (folder / "config.json").write_text(json.dumps(config))
  return folder


def _evaluation(random, accuracy, length, thorough):
  row = {}
  k = 16 if thorough else 4
  for task, value in accuracy.items():
    for name, p in ((task, value), (task + "+1", 0.5 * value)):
      p = float(np.clip(p + random.normal(0, 0.015), 0, 1))
      row |= {
        f"eval/{name}/pass@1": p,
        f"eval/{name}/pass@1_stderr": 0.014 if thorough else 0.035,
        f"eval/{name}/pass@{k}": min(1.0, p + 0.2),
        f"eval/{name}/cons@{k}": min(1.0, p + 0.06),
        f"eval/{name}/mean_length": length * (1 if name == task else 1.3),
        f"eval/{name}/truncated": 0.01,
        f"eval/{name}/format": 0.9,
      }
  return row


def _completions(random, step, number, accuracy):
  rows = []
  for task, p in accuracy.items():
    a, b, c = (int(x) for x in random.integers(10, 99, 3))
    for _ in range(4):
      right = bool(random.random() < p)
      said = a + b + c + (0 if right else 10)
      rows.append({
        "step": step, "round": number + 1, "task": task,
        "prompt": "A conversation between User and Assistant. The user asks a "
        "question, and the Assistant solves it.\nUser: What is "
        f"{a} + {b} + {c}?\nAssistant:",
        "completion": f" <think>{a} + {b} = {a + b}. {a + b} + {c} = {said}."
        f" Wait, let me check: {c} + {b} = {c + b}.</think>\n"
        f"<answer>{said}</answer>",
        "answer": str(a + b + c),
        "rewards": {"accuracy": float(right), "format": 1.0},
        "reward": 1.0 + right, "advantage": float(random.normal()),
        "length": int(40 + 20 * random.random()), "finish": "stop",
      })  # fmt: skip
  return rows


def _write_lines(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _data(page):
  pattern = r'<script type="application/json" id="data">(.*?)</script>'
  return json.loads(re.search(pattern, page, re.DOTALL)[1])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return synthetic_workdir(tmp_path_factory.mktemp("runs") / "demo", 20)


@pytest.fixture(scope="module")
def page(workdir):
  return command.build([workdir]).read_text("utf-8")


@pytest.mark.slow
def test_the_page_loads_nothing(page):
  markup = re.sub(r'<script type="application/json".*?</script>', "", page)
  outside = (
    r"https?://", r'(?:src|href)="(?!#|data:image/png)', r"url\((?!#)",
    r"@import", r"<link", r"<iframe",
  )  # fmt: skip
  for pattern in outside:
    assert not re.search(pattern, markup), pattern
  assert "default-src 'none'" in page
  assert page.count("<svg") > 30


def test_hostile_completions_stay_text(workdir, page):
  assert "<img" not in page
  assert page.count("<script") == 2
  assert page.count("</script>") == 2
  assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page  # In the config.
  data = _data(page)
  at = {name: i for i, name in enumerate(data["columns"])}
  lines = (workdir / "completions.jsonl").read_text().splitlines()
  originals = [json.loads(line) for line in lines]
  assert len(data["rows"]) == len(originals)
  for row, original in zip(data["rows"], originals, strict=True):
    assert data["prompts"][row[at["prompt"]]] == original["prompt"]
    assert row[at["completion"]] == original["completion"]
    assert row[at["accuracy"]] == original["rewards"]["accuracy"]


def test_ids_are_unique_and_references_resolve(page):
  ids = re.findall(r'\sid="([^"]+)"', page)
  assert len(ids) == len(set(ids))
  used = re.findall(r'(?:url\(#|href="#)([^")]+)', page)
  assert used
  assert set(used) <= set(ids)


def test_every_chart_is_a_png_too(workdir, page):
  names = {path.stem for path in (workdir / "figures").glob("*.png")}
  assert {"accuracy", "length", "reflection", "reward", "policy", "experts",
          "throughput"} <= names  # fmt: skip
  assert all(f'id="{name}"' in page for name in names)


def test_the_same_files_give_the_same_page(tmp_path):
  """Whatever a notebook has set for its own figures."""
  keep = "eval/chain_sum/|load/1|perf"
  workdir = synthetic_workdir(tmp_path / "demo", 8, keep=keep)
  pages = [command.build([workdir], tmp_path / "a")]
  settings = {"figure.constrained_layout.use": True, "grid.alpha": 0.3}
  with matplotlib.rc_context(settings):
    pages.append(command.build([workdir], tmp_path / "b"))
  assert pages[0].read_bytes() == pages[1].read_bytes()


def test_headlines_are_the_first_and_last_evaluation(workdir):
  run = command.read(workdir, "demo")
  firsts, lasts = zip(
    *(run.curves[f"eval/{task}/pass@1"].values[[0, -1]]
      for task in ("chain_sum", "countdown", "spell_backward")),
    strict=True,
  )  # fmt: skip
  change = command.headlines(run)[0]
  assert change.before == f"{np.mean(firsts):.1%}"
  assert change.after == f"{np.mean(lasts):.1%}"


def test_a_summary_wins_over_metrics(workdir):
  run = command.read(workdir, "demo")
  run = run._replace(summary={"base_pass_at_1": 0.125, "zero_pass_at_1": 0.875})
  assert command.headlines(run)[0][1:3] == ("12.5%", "87.5%")


def test_several_runs_overlay(tmp_path):
  keep = "eval/chain_sum/|reward/mean|load/1"
  good = synthetic_workdir(tmp_path / "a" / "demo", 8, keep=keep)
  control = synthetic_workdir(tmp_path / "b" / "demo", 8, 1, 0.0, keep)
  page = command.build([good, control], tmp_path / "both.html").read_text()
  assert _data(page)["runs"] == ["a/demo", "b/demo"]
  assert page.count(">a/demo</li>") == 3
  assert page.count(">b/demo</li>") == 3
  assert (tmp_path / "figures" / "accuracy.png").exists()
  assert not (good / "report.html").exists()


def test_a_line_cut_by_a_kill_is_skipped(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 4, "reward/mean": 1.0}\n{"step": 8, "rewar')
  assert [row["step"] for row in command.read_lines(path)] == [4]


@pytest.mark.parametrize("line", ['{"step": 4, "rew', "[]", '{"time": 1.0}'])
def test_a_broken_line_in_the_middle_is_named(tmp_path, line):
  path = tmp_path / "metrics.jsonl"
  path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 9}}\n')
  with pytest.raises(ValueError, match=f"^{re.escape(str(path))}:2: "):
    command.build([tmp_path])


def test_a_missing_run_is_one_line_with_a_remedy(tmp_path, python):
  for arguments in ([tmp_path], [tmp_path / "nowhere"], []):
    done = python("-m", "r1jax", "report", *arguments)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.count("\n") == 1
    assert re.search("; (use|name) ", done.stderr)


@pytest.mark.parametrize(
  "rows",
  [
    [{"step": 0, "time": 0.0}],
    [{"step": 3, "reward/mean": None, "perf/gen_time": 1.0}],
    [{"step": 2, "loss/nll": 2.5}, {"step": 4, "loss/nll": 1.5}],
    [{"step": 0, "eval/sum/pass@1": 0.5}],
    [{"step": 1, "router/load/1": [0.5, 0.5], "x": "text", "y": True}],
  ],
)
def test_any_metric_may_be_absent(tmp_path, rows):
  _write_lines(tmp_path / "metrics.jsonl", rows)
  assert "Optimizer steps" in command.build([tmp_path]).read_text()


def test_metrics_without_a_chart_are_listed(page):
  assert "optim/update_norm" in page
  assert ">reward/mean<" not in page


def test_curves_keep_the_last_of_equal_steps_and_drop_nulls():
  rows = [
    {"step": 4, "x": 1.0}, {"step": 8, "x": None}, {"step": 4, "x": 3.0},
    {"step": 2, "x": 2}, {"step": 6, "x": float("nan")},
  ]  # fmt: skip
  curve = charts.curves(rows)["x"]
  assert curve.steps.tolist() == [2, 4]
  assert curve.values.tolist() == [2.0, 3.0]


def test_names_with_markup_and_mathematics_are_drawn_as_text():
  name = "$\\frac{1</svg>&\"'"
  curve = figures.Curve(np.arange(3), np.arange(3.0))
  chart = charts.charts({name: {f"eval/{name}/pass@1": curve}})[0]
  text = figures.svg(figures.figure(chart.panels), "p", name)
  assert text.count("</svg>") == 1
  assert "$\\frac{1&lt;/svg&gt;&amp;" in text
