"""Shared by all tests. pytest puts this folder on ``sys.path``: ``import deterministic`` works everywhere."""
