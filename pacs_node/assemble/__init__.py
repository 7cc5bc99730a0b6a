"""Assemble: is the series complete, and is it fit for inference? Both are pure decisions with a reason in words."""
