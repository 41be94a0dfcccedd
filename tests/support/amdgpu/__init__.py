"""A functional emulator of AMD's CDNA machine code, for tests: what a kernel computes, no timing.

Input is the assembly text that Triton and clang emit for gfx942 and gfx950. Semantics follow AMD's
public "AMD Instinct MI300" (CDNA3) and "CDNA4" instruction set architecture reference guides; each
row of an instruction table names the guide's section. What the guide leaves to the hardware
(rounding of approximations, ordering within the memory system) is noted where it is decided.
"""
