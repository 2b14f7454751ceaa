"""The terminal of `locallab chat`: input lines, slash commands, streamed Markdown."""
