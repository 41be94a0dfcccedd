"""The program that hal-serve starts beside itself: builds the engine and serves its socket.

Not a command for users: `python -m hal.cli.engine_process --fd N --parent PID`.
"""

from __future__ import annotations

import argparse
import json
import sys

from hal.cli.garbage import no_collections_while_loading
from hal.server.engine_process import LoadedEngine, run_engine_process
from hal.server.messages import EngineInfo, Start


def main() -> int:
    parser = argparse.ArgumentParser(prog="hal-engine")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    return run_engine_process(arguments.fd, arguments.parent, build)


def build(start: Start) -> LoadedEngine:
    """Imports late: the socket must be watched before torch takes its second to load."""
    if start.fake_script is not None:
        from hal.server.fake_engine import load_fake_engine

        return load_fake_engine(start.fake_script, start.config)
    return _build_real(start)


def _build_real(start: Start) -> LoadedEngine:
    with no_collections_while_loading():
        from hal.build import build_engine
        from hal.engine.progress import StreamProgress, Unit
        from hal.explain import level_counts

        progress = StreamProgress(sys.stderr, "loading weights", Unit.BYTES)
        built = build_engine(start.config, progress)
    resolved, caps = built.resolved, built.device.capabilities
    explain = built.as_dict()
    explain["model"] = {"architecture": built.model.architecture}  # no local path over HTTP
    info = EngineInfo(
        architecture=built.model.architecture,
        device=f"{caps.name} ({caps.arch})",
        device_reason=built.device_reason,
        dtype=str(resolved.dtype),
        vocab_size=built.model.vocab_size,
        hidden_size=built.model.hidden_size,
        max_model_len=resolved.max_model_len,
        max_num_seqs=resolved.max_num_seqs,
        max_num_batched_tokens=resolved.max_num_batched_tokens,
        block_size=resolved.block_size,
        num_blocks=built.plan.num_blocks,
        plan_text=built.plan_text(),
        weights=built.weights,
        site_levels=level_counts(built.sites),
        explain_json=json.dumps(explain).encode(),
    )
    watch = None if built.group is None else built.group.on_loss
    return LoadedEngine(built.engine, info, watch)


if __name__ == "__main__":
    sys.exit(main())
