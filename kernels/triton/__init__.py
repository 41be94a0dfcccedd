"""Triton kernels shared by every vendor that Triton compiles for."""
