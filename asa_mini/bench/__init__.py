"""What ASA costs: a whole training step, attention alone; and what only a GPU can say of the kernels."""
