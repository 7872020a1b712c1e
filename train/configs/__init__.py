"""One file per experiment; `get_config(arg="")` returns an ml_collections ConfigDict."""
