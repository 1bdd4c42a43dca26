"""optuna-dashboard over a run: a mirror of its log in memory, that follows the run and never writes to it."""
