"""Planning: does this model fit those devices, what takes the bytes, and what would help.

Reads config.json and tensor headers, never weights, and sums with the memory plan of start-up.
"""
