"""Whose files to believe: weights that someone else can write are someone else's weights."""

from __future__ import annotations

import os
import stat


def is_trusted(status: os.stat_result) -> bool:
    """Written by this user or by root, and by nobody else since."""
    is_writable = bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    return status.st_uid in (0, os.geteuid()) and not is_writable
