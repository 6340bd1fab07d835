"""Graders of tasks: choice, Countdown, logic, instructions, reasoning-gym."""
