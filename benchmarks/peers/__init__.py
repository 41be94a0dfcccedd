"""hal beside other engines on a CPU: arms in child processes, cases, machine, statistics."""
