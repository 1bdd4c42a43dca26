"""Where candidates are scored: in this process; elsewhere in later versions."""
