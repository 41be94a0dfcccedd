"""Every conformance check on one device: the kit of hal.conformance wired to engine and kernels."""
