"""A longer search for the state machines: pytest tests/engine --hypothesis-profile long."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("long", deadline=None, max_examples=5000, stateful_step_count=100)
