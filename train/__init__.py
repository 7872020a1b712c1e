"""The application: trains, evaluates and compares models with alignment attention."""
