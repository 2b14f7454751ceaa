"""One file for each format in which models write tool calls."""
