"""Command-line tools; `r1jax --help` lists them."""
