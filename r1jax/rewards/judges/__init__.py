"""Rewards that another model gives."""
