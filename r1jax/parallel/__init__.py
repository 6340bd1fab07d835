"""Meshes of devices, and arrays and computations that are split over them."""
