"""Pipeline "monai-bundle": a published MONAI bundle, run as its own configuration says, without Python code."""
