"""`python -m hal.cli.info` is `hal-info`."""

import sys

from hal.cli.info.command import main

sys.exit(main())
