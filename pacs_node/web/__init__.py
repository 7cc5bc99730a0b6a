"""Web: what the node did and why, as pages for people and JSON for programs."""
