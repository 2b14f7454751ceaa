"""The work on a request that all dialects share: its lease, its prompt, its generation, its answer."""
