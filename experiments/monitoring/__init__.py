"""Figures of a run and of a node for Prometheus."""
