"""The models: tokens to hidden states and logprobs, as Flax modules."""
