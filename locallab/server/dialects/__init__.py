"""HTTP APIs, each in a folder: `routes` has its paths, `request` its bodies, `stream` its events, `errors` its error body."""
