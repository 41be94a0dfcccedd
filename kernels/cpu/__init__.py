"""CPU kernels: Python wrappers of the native module."""
