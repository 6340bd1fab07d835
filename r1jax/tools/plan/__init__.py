"""Plans: what a run would take of a pod that is not there."""
