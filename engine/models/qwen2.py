"""Qwen2 and Qwen2.5: Llama's layers with biases on the query, key and value projections.

Source: Yang et al. 2024. What differs from Llama is in ModelConfig, so the layers are shared.
"""

from hal.engine.models.llama import build

__all__ = ["build"]
