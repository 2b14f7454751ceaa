"""The documentation that the server serves of itself: `/docs` and `/openapi.json`."""
