"""Reproduce, attack and compare neural-network watermarks."""
