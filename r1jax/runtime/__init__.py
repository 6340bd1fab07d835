"""What a process needs that is not R1: hosts, signals, checkpoints, metrics."""
