"""Tables and pictures out of finished runs."""
