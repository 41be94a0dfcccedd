"""`hal-bench serve URL`: load for any OpenAI-compatible server, and what it answered."""
