"""Every op in plain torch, float32 inside: the specification and the fallback."""
