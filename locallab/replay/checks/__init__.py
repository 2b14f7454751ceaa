"""Checks of answers, by API."""
