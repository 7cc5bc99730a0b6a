"""Lymph nodes of mediastinum and abdomen: data for the recurrent network. No image of a real one is here."""
