"""The requests of each client, according to its source and to issue threads."""
