"""The stage graph: what depends on what, where results are kept, and running what is missing."""
