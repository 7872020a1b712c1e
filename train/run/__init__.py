"""A run from start to end, and what it leaves in its folder."""
