"""Does a kernel compute what its op says? Cases, a float64 oracle, limits per dtype, a runner.

Used by tests/conformance on every registered kernel. It knows kernels only through `hal.select`:
whoever runs it has imported them.
"""
