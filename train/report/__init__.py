"""Tables, pictures and a page out of finished runs."""
