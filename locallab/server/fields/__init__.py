"""Parts of request bodies that several dialects share."""
