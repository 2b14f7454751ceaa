"""One file for each dialect: it parses what comes in and formats what goes out."""
