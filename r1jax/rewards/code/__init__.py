"""Programs that a policy wrote, run in a sandbox."""
