"""`python -m hal.cli.bench` is `hal-bench`."""

import sys

from hal.cli.bench.command import main

sys.exit(main())
