"""Checks of this machine and of a server: what `locallab doctor` runs."""
