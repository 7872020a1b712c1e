"""One step of training: a pure function, its state and its optimiser."""
