"""Compiles the Jinja chat templates of `transformers`, in a sandbox."""

import datetime
import functools
import json


@functools.cache
def compiled(source: str):
  """Returns the compiled template, whose `render` runs in a sandbox.

  Raises ValueError for invalid Jinja.
  """
  import jinja2

  try:
    return _environment().from_string(source)
  except jinja2.TemplateError as error:
    raise ValueError(f"the chat template is not Jinja: {error}") from error


@functools.cache
def _environment():
  """Returns a Jinja environment with the extensions of `transformers`."""
  import jinja2
  import jinja2.ext
  from jinja2 import nodes
  from jinja2.sandbox import ImmutableSandboxedEnvironment

  class Generation(jinja2.ext.Extension):
    """{% generation %} marks an assistant's text; its content is rendered."""

    tags = {"generation"}

    def parse(self, parser):
      line = next(parser.stream).lineno
      body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
      call = self.call_method("_written")
      return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _written(self, caller):
      return caller()

  def refuse(reason):
    raise jinja2.TemplateError(reason)

  environment = ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[Generation, jinja2.ext.loopcontrols],
  )
  environment.filters["tojson"] = lambda value, ensure_ascii=False, **options: (
    json.dumps(value, ensure_ascii=ensure_ascii, **options)
  )
  environment.globals["raise_exception"] = refuse
  environment.globals["strftime_now"] = lambda form: (
    datetime.datetime.now().strftime(form)
  )
  return environment
