"""Shared parts of tests: fakes at the seams, small models, servers, and waiting."""
