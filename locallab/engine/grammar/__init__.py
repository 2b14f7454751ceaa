"""Grammars that constrain an answer: JSON schemas, GBNF, regular expressions, choices."""
