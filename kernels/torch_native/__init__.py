"""Fast paths through torch's own kernels, for any device that torch drives."""
