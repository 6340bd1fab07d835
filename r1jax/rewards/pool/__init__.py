"""A pool of grader processes with limits on time and memory."""
