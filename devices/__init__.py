"""One file per vendor: probe, memory, streams, graphs."""
