"""Processes that grade, each of which may be killed at any moment."""
