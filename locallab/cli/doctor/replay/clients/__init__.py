"""The requests of each client, as read in its source and in issue threads."""
