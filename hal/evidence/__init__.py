"""How far each kernel has been shown to be right on each arch; read, never guessed.

`make evidence` writes the rows from what it has run. A row speaks for one kernel source and one
compiler: a kernel that has changed since has no evidence, and counts as `reference`.
"""

from hal.evidence.rows import Evidence, Level, Row, evidence_of, level_of, rows

__all__ = ["Evidence", "Level", "Row", "evidence_of", "level_of", "rows"]
