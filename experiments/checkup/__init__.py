"""What this machine has and can do: what ``experiments.doctor`` tells."""
