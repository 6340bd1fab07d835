"""Reports: one or several runs as one HTML page."""
