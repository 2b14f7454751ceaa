"""OpenAI's API: chat, completions, embeddings, models, and what others have added to it (FIM, rerank)."""
