"""HTTP APIs, each in a folder: `routes` are its paths, `request` its bodies, `stream` its events, `errors` its error body."""
