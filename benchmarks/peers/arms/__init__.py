"""One module per engine, run as a child process inside that engine's own virtual environment."""
