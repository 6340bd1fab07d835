"""What the server measures of itself, in the format of Prometheus."""

import prometheus_client
from prometheus_client import Counter, Gauge, Histogram

from r1jax.tools.serve.sampler import Sampler

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
  """Counters of one server, in a registry of their own."""

  def __init__(self, sampler: Sampler, slots: int):
    """All counts are 0; gauges read `sampler`."""
    self._registry = prometheus_client.CollectorRegistry()

    def make(kind, name, text, *labels, **options):
      return kind(
        f"r1jax_{name}", text, labels, registry=self._registry, **options
      )

    self.requests = make(
      Counter, "requests", "Requests answered.", "path", "status"
    )
    self.prompt_tokens = make(Counter, "prompt_tokens", "Tokens of prompts.")
    self.completion_tokens = make(
      Counter, "completion_tokens", "Tokens sampled."
    )
    self.cancelled = make(
      Counter, "cancelled_requests", "Requests that their clients left."
    )
    self.seconds = make(
      Histogram,
      "request_seconds",
      "Seconds from a request to the end of its answer.",
      buckets=SECONDS,
    )
    self.first_token_seconds = make(
      Histogram,
      "first_token_seconds",
      "Seconds from a request to its first token.",
      buckets=SECONDS,
    )
    make(Gauge, "slots", "Choices under way at most.").set(slots)
    make(Gauge, "busy_slots", "Choices under way.").set_function(
      lambda: sampler.busy
    )
    make(
      Gauge, "pending_choices", "Choices under way or waiting."
    ).set_function(lambda: sampler.pending)

  def text(self) -> bytes:
    """All of them, as Prometheus reads them."""
    return prometheus_client.generate_latest(self._registry)


CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
