"""Process infrastructure: hosts, signals, checkpoints, metrics, console."""
