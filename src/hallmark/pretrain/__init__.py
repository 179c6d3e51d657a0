"""Contrastive pretraining as LightningModules over lightly's losses, heads and momentum updates."""
