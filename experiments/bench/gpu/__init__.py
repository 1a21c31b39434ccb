"""What a GPU has to show, measured in one run: ``python -m experiments.bench.gpu``."""
