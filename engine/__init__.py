"""Paged KV cache, scheduling, models and sampling, the same code for every device."""
