"""Checks of this machine and of a server, run by `locallab doctor`."""
