"""Lymph nodes of mediastinum and abdomen in CT. Experimental: nothing here was trained on a real one."""
