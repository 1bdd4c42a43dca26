"""A diagnosis as people meet it: models that are named on a command line, a terminal, one HTML page, probes of data."""
