"""Loggers beside the run folder: one file each here, and one YAML in ``conf/logger/``."""
