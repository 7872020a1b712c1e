"""From a config to the parts that it names."""
