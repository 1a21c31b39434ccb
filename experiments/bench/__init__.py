"""Benchmarks: this project against a plain reference, in one process, in turn, so that a noisy
machine slows both alike. One file a benchmark; ``python -m experiments.bench --help`` lists them.
"""
