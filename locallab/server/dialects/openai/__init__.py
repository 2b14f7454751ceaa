"""OpenAI's API: chat, completions, embeddings, models, and additions of others (FIM, rerank)."""
