"""Tasks whose rules are code: choice, countdown, logic, instructions."""
