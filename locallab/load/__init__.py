"""A load generator for OpenAI-style chat servers, standard library only: `locallab bench` and scripts/bench share it."""
