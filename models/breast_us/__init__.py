"""Breast ultrasound: where the lesion is, how large, and whether it looks normal, benign or malignant."""
