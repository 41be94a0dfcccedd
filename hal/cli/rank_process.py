"""The program that an engine with several ranks starts for each of its others.

Not a command for users: `python -m hal.cli.rank_process --control N --life N --parent PID`.
"""

from __future__ import annotations

import argparse
import sys

from hal.cli.garbage import no_collections_while_loading


def main() -> int:
    parser = argparse.ArgumentParser(prog="hal-rank")
    for name in ("control", "life", "parent"):
        parser.add_argument(f"--{name}", type=int, required=True)
    arguments = parser.parse_args()
    with no_collections_while_loading():
        from hal.ranks.worker import run_rank
    return run_rank(arguments.control, arguments.life, arguments.parent)


if __name__ == "__main__":
    sys.exit(main())
