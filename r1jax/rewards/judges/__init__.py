"""Rewards from other models: judges behind an endpoint, and reward models."""
