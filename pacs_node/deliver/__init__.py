"""Deliver: a Package goes to a destination, and what the destination said about each object comes back as Receipts."""
