"""A PACS-integrated AI node. Research use only, not for diagnostic use."""

__version__ = "0.1.0"
