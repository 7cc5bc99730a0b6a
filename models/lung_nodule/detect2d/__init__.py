"""The detector on slices, CCFAM-FPN: its data, training, figures, and its boxes linked to findings in a volume."""
