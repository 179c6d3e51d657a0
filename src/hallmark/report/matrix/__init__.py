"""Every scheme against every attack: what removing a mark costs, and whether the scheme may be trusted to accuse."""
