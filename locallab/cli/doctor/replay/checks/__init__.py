"""What must hold of answers, by API."""
