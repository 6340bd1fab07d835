"""Parameters and tokens to hidden states and log-probabilities."""
