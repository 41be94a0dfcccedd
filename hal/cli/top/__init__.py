"""`hal-serve top [URL]`: a running server at a glance."""
