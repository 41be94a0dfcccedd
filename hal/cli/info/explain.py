"""`hal-info explain MODEL`: which kernel runs each op of a model on a device, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from hal.cli.arguments import (
    ENGINE_FLAGS,
    CommandLine,
    Flag,
    FlagGroup,
    engine_config,
    report_error,
)

PROG = "hal-info explain"
_DESCRIPTION = (
    "For every site of MODEL (an op and the shapes it is asked for): the kernel that would run, "
    "how it runs each number of tokens, its level (native, upcast, reference) with the expected "
    "cost, its evidence, and every other kernel with the rule that kept it out. Reads config.json "
    "only. --device null:PROFILE explains for a device that is not here. Exit code 5: a site has "
    "no kernel."
)
_FLAGS = FlagGroup("output", (Flag(name="json", help="print one JSON object", convert=None),))


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Print the explanation; the error of a site without a kernel comes last."""
    line = CommandLine(PROG, _DESCRIPTION, [ENGINE_FLAGS, _FLAGS])
    values = line.parse(argv, environ)
    config = engine_config(values)
    # After parsing, because these import torch.
    from hal.cli.info.explanation import explain, render

    explanation = explain(config)
    if values.get("json"):
        print(json.dumps(explanation.as_json(), indent=2))
    else:
        print(render(explanation))
    if explanation.error is None:
        return 0
    return report_error(PROG, explanation.error)
