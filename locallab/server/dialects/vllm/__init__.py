"""The API of vLLM's server, as far as it is not OpenAI's."""
