"""Subcommands of `locallab`, one file each; none imports another."""
