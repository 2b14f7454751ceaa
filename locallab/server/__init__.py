"""HTTP: routes parse and format, everything between is neutral."""
