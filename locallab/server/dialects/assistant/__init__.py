"""The coding assistant: /api/v1/assistant, over HTTP and WebSocket."""
