"""Implementations of the ops, one folder per vendor, each with a reason when it cannot run."""
