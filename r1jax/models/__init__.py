"""What a model computes: tokens to hidden states and log-probabilities."""
