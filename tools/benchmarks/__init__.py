"""Measurements of nlnet_d2 beside other ways to compute the same; ``tools/benchmark.py`` is the way in."""
