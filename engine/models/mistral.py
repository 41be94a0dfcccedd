"""Mistral: Llama's layers with sliding-window attention, as config.json's windows say.

Source: Jiang et al. 2023. What differs from Llama is in ModelConfig, so the layers are shared.
"""

from hal.engine.models.llama import build

__all__ = ["build"]
