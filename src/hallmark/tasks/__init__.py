"""Tasks: what a host is used for after release, and how well it does."""
