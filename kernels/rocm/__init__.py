"""Kernels for AMD GPUs only."""
