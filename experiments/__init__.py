"""Training runs and their configurations: `experiments.train`, `experiments.sweep`."""
