"""What Triton makes of this folder's kernels for archs that need not be here."""
