"""Objectives: arrays in, scalar out. No model, no sampling, no config."""
