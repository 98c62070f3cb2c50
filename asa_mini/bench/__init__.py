"""What ASA costs: a whole training step, and attention alone."""
