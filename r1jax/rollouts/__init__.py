"""Parameters and prompts to rollouts."""
