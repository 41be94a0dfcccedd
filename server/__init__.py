"""OpenAI-compatible front, limits and supervision of the engine process."""
