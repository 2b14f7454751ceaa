"""Grammars that hold an answer to its language: JSON schemas, GBNF, regular expressions, choices."""
