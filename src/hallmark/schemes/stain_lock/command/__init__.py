"""``hallmark-stain`` and ``hallmark-lock``: mark or lock a trained model, without data and without an experiment."""
