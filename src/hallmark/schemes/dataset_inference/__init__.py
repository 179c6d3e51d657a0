"""dataset_inference: Dziedzic et al. 2022, Dataset Inference for Self-Supervised Models."""

from hallmark.schemes.dataset_inference.scheme import DatasetInference

__all__ = ["DatasetInference"]
