"""Two packages of one distribution: r1jax/, and kernels/ as r1jax_kernels."""

from setuptools import find_packages, setup

setup(
  packages=[*find_packages(include=["r1jax", "r1jax.*"]), "r1jax_kernels"],
  package_dir={"r1jax_kernels": "kernels"},
  package_data={
    "r1jax": [
      "base/*",
      "base_r1/*",
      "py.typed",
      "tools/report/page/*",
      "tools/serve/page/*",
    ],
    "r1jax_kernels": ["README.md"],
  },
)
