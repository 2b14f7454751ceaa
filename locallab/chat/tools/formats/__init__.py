"""Formats of tool calls, one family of models a file."""
