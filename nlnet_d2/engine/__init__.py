"""Runs: from a command line to a trained or evaluated model, on any number of processes."""
