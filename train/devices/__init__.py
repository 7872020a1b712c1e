"""The step on several devices, on one host or many."""
