"""Data sets by name, splits, fingerprints, and the resident, augmented batches of training."""
