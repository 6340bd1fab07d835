"""Errors as OpenAI's API writes them."""

from typing import Any

# By status; every other one is the server's own fault.
KINDS = {
  401: "authentication_error",
  429: "rate_limit_error",
  500: "server_error",
  503: "server_error",
  504: "timeout_error",
}


class ApiError(Exception):
  """A request that gets an error instead of an answer.

  The message is sent to the client: it must name nothing of this machine.
  """

  def __init__(
    self,
    message: str,
    *,
    status: int = 400,
    param: str | None = None,
    code: str | None = None,
  ):
    """The error of a request.

    Args:
      message: what is wrong, and what to do about it.
      status: of HTTP.
      param: the key of the request that is wrong, if it is one.
      code: a short name of the error for programs.
    """
    super().__init__(message)
    self.status, self.param, self.code = status, param, code

  def content(self) -> dict[str, Any]:
    """The error as a JSON object."""
    return {
      "error": {
        "message": str(self),
        "type": KINDS.get(self.status, "invalid_request_error"),
        "param": self.param,
        "code": self.code,
      }
    }
