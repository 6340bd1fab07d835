"""Meshes, and arrays on them."""
