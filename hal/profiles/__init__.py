"""Profiles of real devices, present or not: what planning, posing and roofline bounds start from.

The numbers stand in `devices.toml`, each with its source.
"""

from hal.profiles.profile import Link, Profile
from hal.profiles.table import all_profiles, find_profile, nearest_profiles
from hal.profiles.target import Target, parse_target

__all__ = [
    "Link",
    "Profile",
    "Target",
    "all_profiles",
    "find_profile",
    "nearest_profiles",
    "parse_target",
]
