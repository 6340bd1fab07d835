"""A server of one model that OpenAI's clients talk to; see `command`."""
