"""Tensor parallelism: rank 0 is the engine's process, the others are processes that it starts.

Rank 0 schedules and sends each step's batch; all ranks run it and meet in the collective. A rank
lives as long as rank 0 does, and the group only as long as all of its ranks.
"""
