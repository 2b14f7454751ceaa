"""Vectors and relevance scores: contexts, workers and batches of embedding models."""
