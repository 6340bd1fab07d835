"""Objectives: arrays to a scalar, without a model, a sampler or a config."""
