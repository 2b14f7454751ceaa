"""From a prompt to its events, for every dialect alike."""
