"""Predictions over HTTP: what ``experiments.serve`` is made of."""
