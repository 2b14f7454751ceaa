"""The server's documentation of itself: `/docs` and `/openapi.json`."""
