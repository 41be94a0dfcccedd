"""Python's cycle collector while a command starts."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collections_while_loading() -> Iterator[None]:
    """What imports and a build make stays to the end, so looking for garbage in it is in vain.

    A tenth of the time of importing torch goes into that. Afterwards these million objects are put
    aside, or each full collection would stop the engine for the time it takes to walk them.
    For processes that are ours: in a program that embeds `LLM` the collector is the program's.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
