"""What people type and read in a terminal: input lines, slash commands, streamed Markdown."""
