"""Does a device compute what ops and models say? Cases, a float64 oracle, limits, a runner.

Ops: every registered kernel on every case. Layers and models: tiny ones, cut and mixed in every way
that a scheduler may. It knows kernels only through `hal.select`, and the engine only as what
implements ModelUnderTest and LayerUnderTest; hal.conform wires both for `hal-info conform`.
"""
