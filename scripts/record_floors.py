"""Records how many waves of each compiled site a SIMD holds: the floors of `hal-info verify`.

    python scripts/record_floors.py           replace the floors by what this Triton compiles
    python scripts/record_floors.py --lower   keep the lower of the recorded floor and this Triton's

Run both with each release of Triton that is supported. A floor that falls is a decision: say why in
the commit.
"""

from __future__ import annotations

import sys
from collections import defaultdict

from hal.conform.compile_matrix import MatrixRequest, compile_matrix
from hal.kernels.triton.verify.matrix import read_floors, write_floors
from hal.kernels.triton.verify.targets import DEFAULT_ARCHS


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--lower"]):
        print(__doc__, file=sys.stderr)
        return 2
    old = read_floors() if arguments else {}
    floors: dict[str, dict[str, int]] = defaultdict(dict)
    for cell in compile_matrix(MatrixRequest(archs=DEFAULT_ARCHS)):
        if cell.waves:
            recorded = old.get(cell.label, {}).get(cell.arch, cell.waves)
            floors[cell.label][cell.arch] = min(cell.waves, recorded)
    write_floors(floors)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
