"""Pictures and sounds in prompts: libmtmd's embeddings, and how they take the place of tokens."""
