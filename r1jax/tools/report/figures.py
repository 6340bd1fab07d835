"""Panels drawn with matplotlib, as PNG for papers and SVG for the report.

`figure` arranges panels for a paper; the report draws each panel separately,
and the browser arranges them. The colours are those of Okabe and Ito, which
colour-blind readers can distinguish. `svg` replaces them by CSS variables, so
one drawing works on light and dark pages.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

INK, MUTED, RULE = "#1c2024", "#6b7079", "#e2e4e8"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
VARIABLES = {
  INK: "var(--ink)",
  MUTED: "var(--muted)",
  RULE: "var(--rule)",
  **{color: f"var(--series-{i})" for i, color in enumerate(SERIES)},
}
# On top of matplotlib's defaults, whatever the caller of Python has set.
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 8, "text.color": INK,
    "text.parse_math": False, "axes.edgecolor": MUTED, "axes.linewidth": 0.7,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True,
    "axes.labelcolor": MUTED, "axes.labelsize": 7.5, "axes.titlesize": 8.5,
    "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.titlecolor": INK, "axes.titlepad": 8, "axes.xmargin": 0.02,
    "grid.color": RULE, "grid.linewidth": 0.7, "xtick.color": MUTED,
    "ytick.color": MUTED, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5,
    "xtick.major.size": 3, "ytick.major.size": 0, "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round", "legend.frameon": False,
    "svg.fonttype": "none", "path.simplify": True,
}  # fmt: skip
WIDTH, HEIGHT = 3.5, 2.35  # Size of a panel in inches.
LEFT, RIGHT, TOP, BOTTOM = 0.5, 0.12, 0.36, 0.46  # Its margins in inches.


class Curve(NamedTuple):
  """One metric over training."""

  steps: np.ndarray  # [N], increasing.
  values: np.ndarray  # [N], or [N, E] for a metric that is a list.


Runs = Mapping[str, Mapping[str, Curve]]  # Run name -> metric name -> curve.


class Panel(NamedTuple):
  """One pair of axes."""

  title: str
  draw: Callable[[Axes], None]
  keys: tuple[str, ...]  # The metrics that it shows.


def is_scalar(curve: Curve | None) -> bool:
  """Whether there is a curve, and its values are scalars."""
  return curve is not None and curve.values.ndim == 1


def draw_scalar(runs: Runs, key: str, ax: Axes) -> None:
  """Draws one line per run that has the metric; long curves are smoothed."""
  drawn = []
  for i, (name, metrics) in enumerate(runs.items()):
    if not is_scalar(metrics.get(key)):
      continue
    steps, values = metrics[key]
    drawn.append(values)
    style = {"color": SERIES[i % len(SERIES)]}
    label = name if len(runs) > 1 else None
    window = len(steps) // 25
    if window > 1 and not key.startswith(("eval/", "optim/lr")):
      ax.plot(steps, values, **style, linewidth=0.7, alpha=0.35)
      values = _moving_average(values, window)
    marker = "o" if len(steps) <= 24 else None
    ax.plot(steps, values, **style, label=label, marker=marker, markersize=3)
  drawn = np.concatenate(drawn)
  low, high = drawn.min(), drawn.max()
  if low == high:
    pad = abs(low) or 1.0
    ax.set_ylim(low - 0.5 * pad if low < 0 else 0, high + 0.5 * pad)
  elif low >= 0 and (low < 0.6 * high or "length" in key):
    ax.set_ylim(0, 1.08 * high)


def _moving_average(values: np.ndarray, window: int) -> np.ndarray:
  """The centred mean over `window` points, over fewer at the ends."""
  kernel = np.ones(window)
  total = np.convolve(values, kernel, "same")
  return total / np.convolve(np.ones_like(values), kernel, "same")


def draw_accuracy(runs: Runs, task: str, ax: Axes) -> None:
  """Draws pass@1 with a band of one standard error, and cons@k.

  It is like Figure 2 of arXiv:2501.12948.
  """
  many = len(runs) > 1
  if many:
    ax.plot([], [], color=MUTED, label="pass@1")
  for i, (name, metrics) in enumerate(runs.items()):
    color = SERIES[i % len(SERIES)]
    prefix = f"eval/{task}/"
    if prefix + "pass@1" in metrics:
      steps, values = metrics[prefix + "pass@1"]
      error = metrics.get(prefix + "pass@1_stderr")
      if error is not None:
        error = np.interp(steps, *error)
        ax.fill_between(steps, values - error, values + error,
                        color=color, alpha=0.18, linewidth=0)  # fmt: skip
      ax.plot(steps, values, color=color, marker="o", markersize=3,
              label=name if many else "pass@1", zorder=3)  # fmt: skip
    votes = [key for key in metrics if key.startswith(prefix + "cons@")]
    for key in sorted(votes, key=lambda key: -len(metrics[key].steps)):
      label = key.removeprefix(prefix)
      # Two points, such as before and after training, are drawn without a line.
      sparse = len(metrics[key].steps) <= 2
      style = {"linestyle": "none" if sparse else "--", "linewidth": 1.2}
      style |= {"marker": "D", "markersize": 4 if sparse else 2.2}
      if sparse and metrics[key].steps[0] == 0:
        style |= {"markerfacecolor": "none"}
      if many:
        ax.plot([], [], color=MUTED, label=label, **style)
      ax.plot(*metrics[key], color=color if many else SERIES[1],
              label=None if many else label, **style)  # fmt: skip
  ax.set_ylim(-0.02, 1.04)
  ax.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])


def draw_load(curve: Curve, ax: Axes) -> None:
  """Draws each expert's share of tokens, in multiples of an even share."""
  steps, load = curve
  num_experts = load.shape[1]
  cmap = LinearSegmentedColormap.from_list(
    "load", [SERIES[1], "#ffffff", SERIES[0]]
  )
  middles = (steps[1:] + steps[:-1]) / 2
  gap = (steps[-1] - steps[0]) / max(len(steps) - 1, 1) or 1
  edges = [steps[0] - gap / 2, *middles, steps[-1] + gap / 2]
  mesh = ax.pcolormesh(
    edges, np.arange(num_experts + 1) - 0.5, load.T * num_experts,
    cmap=cmap, vmin=0, vmax=2, rasterized=True,
  )  # fmt: skip
  ax.grid(False)
  ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
  ax.set_ylabel("expert", labelpad=2)
  box = ax.get_position()
  ax.set_position([box.x0, box.y0, 0.87 * box.width, box.height])
  bar = ax.figure.colorbar(mesh, cax=ax.inset_axes([1.03, 0, 0.035, 1]))
  bar.set_ticks([0, 1, 2], labels=["0", "even", "2x+"])
  bar.solids.set(rasterized=True, edgecolor="face")
  bar.outline.set_visible(False)


def draw_phases(phases: Mapping[str, Curve], ax: Axes) -> None:
  """Draws the seconds of each phase, stacked."""
  steps = next(iter(phases.values())).steps
  heights = [np.interp(steps, *curve) for curve in phases.values()]
  ax.stackplot(steps, heights, labels=phases.keys(), linewidth=0,
               colors=SERIES[2:], alpha=0.85)  # fmt: skip


def _tick(value: float, _: int = 0) -> str:
  if abs(value) >= 1e6:
    return f"{value / 1e6:g}M"
  if abs(value) >= 1e4:
    return f"{value / 1e3:g}k"
  return f"{value:.6g}".replace("e-0", "e-").replace("-", "\N{MINUS SIGN}")


def figure(
  panels: Sequence[Panel], columns: int = 3, legend: bool = True
) -> Figure:
  """A figure of `panels` in rows of `columns`, with one legend above."""
  with matplotlib.style.context(["default", STYLE]):
    columns = min(columns, len(panels))
    num_rows = -(-len(panels) // columns)
    width, height = columns * WIDTH, num_rows * HEIGHT
    fig = Figure(figsize=(width, height), facecolor="none")
    for i, panel in enumerate(panels):
      row, column = divmod(i, columns)
      x = column * WIDTH + LEFT
      y = (num_rows - 1 - row) * HEIGHT + BOTTOM
      ax = fig.add_axes((
        x / width, y / height,
        (WIDTH - LEFT - RIGHT) / width, (HEIGHT - TOP - BOTTOM) / height,
      ))  # fmt: skip
      ax.set_facecolor("none")
      ax.xaxis.set_major_locator(
        MaxNLocator(5, steps=[1, 2, 5, 10], integer=True)
      )
      ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
      panel.draw(ax)
      for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(_tick))
      ax.set_title(panel.title, x=-LEFT / (width * ax.get_position().width))
      ax.set_xlabel("optimizer steps", loc="right", labelpad=2)
    handles = _handles(fig)
    if legend and handles:
      fig.legend(handles.values(), handles.keys(), ncols=6, loc="lower left",
                 bbox_to_anchor=(0, 1.0), borderaxespad=0,
                 borderpad=0.2)  # fmt: skip
    return fig


def _handles(fig: Figure) -> dict[str, Any]:
  """The first artist of each label; grey ones, of no run, come last."""
  first: dict[str, Any] = {}
  for ax in fig.axes:
    for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
      first.setdefault(label, handle)
  return dict(sorted(first.items(), key=lambda item: _color(item[1]) == MUTED))


def _color(handle: Any) -> str:
  if hasattr(handle, "get_color"):
    return handle.get_color()
  return to_hex(handle.get_facecolor()[0])


def legend(fig: Figure) -> list[tuple[str, str, str]]:
  """(label, CSS colour, "solid" | "dashed" | "points" | "area") per entry."""
  kinds = {"-": "solid", "--": "dashed", "None": "points"}
  entries = []
  for label, handle in _handles(fig).items():
    kind = "area"
    if hasattr(handle, "get_marker"):
      kind = kinds.get(handle.get_linestyle(), "solid")
    color = _color(handle)
    entries.append((label, VARIABLES.get(color, color), kind))
  return entries


def png(fig: Figure, path) -> None:
  """Writes `fig` to `path` on white, at 200 dots per inch."""
  with matplotlib.style.context(["default", STYLE]):
    fig.savefig(path, dpi=200, facecolor="white", bbox_inches="tight")


def svg(fig: Figure, prefix: str, description: str) -> str:
  """`fig` as an SVG element for an HTML page.

  Every id starts with `prefix`, so that figures do not share clip paths.
  Colours are CSS variables, and there is no style sheet that would affect the
  page.
  """
  text = io.StringIO()
  style = {**STYLE, "svg.hashsalt": prefix}
  with matplotlib.style.context(["default", style]):
    fig.savefig(text, format="svg", dpi=144, metadata={"Date": None})
  root = ElementTree.fromstring(text.getvalue())
  for parent in list(root.iter()):
    for child in list(parent):
      if child.tag.endswith(("}metadata", "}style")):
        parent.remove(child)
  for element in root.iter():
    element.tag = element.tag.rpartition("}")[2]
    attributes = {k.rpartition("}")[2]: v for k, v in element.attrib.items()}
    element.attrib.clear()
    for name, value in attributes.items():
      if name == "id":
        value = f"{prefix}-{value}"
      elif name == "href" and value.startswith("#"):
        value = f"#{prefix}-{value[1:]}"
      elif name == "style":
        for color, variable in VARIABLES.items():
          value = value.replace(color, variable)
      element.set(name, value.replace("url(#", f"url(#{prefix}-"))
  for name in ("width", "height", "version"):
    root.attrib.pop(name, None)
  root.set("role", "img")
  root.set("aria-label", description)
  return ElementTree.tostring(root, encoding="unicode")
