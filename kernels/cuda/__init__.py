"""Kernels for NVIDIA GPUs only."""
