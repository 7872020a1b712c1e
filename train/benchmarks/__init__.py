"""Benchmarks of training; `python -m train.benchmarks` runs them."""
