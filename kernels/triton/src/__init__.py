"""Triton functions; importing a module here imports Triton."""
