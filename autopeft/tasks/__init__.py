"""What a model is trained for: reading and splitting data, encoding it, losses and metrics."""
