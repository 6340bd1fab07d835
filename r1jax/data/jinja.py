"""Jinja as chat templates are written for it: the dialect of `transformers`."""

import datetime
import functools
import json


@functools.cache
def compiled(source: str):
  """The template, whose `render` runs it in a sandbox.

  Raises ValueError if it is no Jinja.
  """
  import jinja2

  try:
    return _environment().from_string(source)
  except jinja2.TemplateError as error:
    raise ValueError(f"the chat template is no Jinja: {error}") from error


@functools.cache
def _environment():
  import jinja2
  import jinja2.ext
  from jinja2 import nodes
  from jinja2.sandbox import ImmutableSandboxedEnvironment

  class Generation(jinja2.ext.Extension):
    """{% generation %}, which marks what an assistant writes: it is kept."""

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
