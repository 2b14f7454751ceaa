"""Incremental parsers of tool calls, each shared by several formats."""
