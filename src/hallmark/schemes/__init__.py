"""Watermarking schemes, one folder each."""
