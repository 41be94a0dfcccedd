"""Packed and quantised weights on disk, so that the next start reads them instead of making them.

An entry holds the bytes of every weight family of one model. Its name is a hash of all that shapes
them: the content of the checkpoint's files, the families' layouts, the sources of their code, this
release and the device. Every chunk has a checksum that is compared while it is read. Anything that
is wrong costs a start its speed and one line in the log, never its answers.
"""

from hal.pack_cache.cache import MADE, KeptWeight, PackCache

__all__ = ["MADE", "KeptWeight", "PackCache"]
