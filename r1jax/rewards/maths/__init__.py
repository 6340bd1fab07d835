"""Answers of mathematics: read, and compared by what they are worth."""
