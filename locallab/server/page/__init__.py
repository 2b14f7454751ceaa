"""The page that a browser gets at `/`: plain ES modules and style sheets, with the routes that serve them."""
