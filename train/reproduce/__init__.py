"""The paper's tables, as far as a machine can run them, with one command."""
