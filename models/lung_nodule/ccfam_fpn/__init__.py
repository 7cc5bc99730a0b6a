"""CCFAM-FPN as the node runs it: boxes on slices, linked to findings in a volume."""
