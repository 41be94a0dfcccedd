"""Qwen3: Llama's layers with RMS-normalised query and key heads.

Source: Yang et al. 2025. What differs from Llama is in ModelConfig, so the layers are shared.
"""

from hal.engine.models.llama import build

__all__ = ["build"]
