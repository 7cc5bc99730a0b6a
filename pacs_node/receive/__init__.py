"""Receive: what a sender hands over becomes an Instance, durable before it is answered."""
