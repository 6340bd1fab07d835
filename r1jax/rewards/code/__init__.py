"""The code reward: runs programs in a sandbox, and tests them there."""
