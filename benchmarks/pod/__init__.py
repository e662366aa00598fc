"""Training on one process or on many, that goes on where a crash cut it off."""
