"""LocalLab's own routes: /generate, /chat, /models, /system, /health, /metrics."""
