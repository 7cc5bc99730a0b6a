"""How the recurrent-attention network is trained, whatever its candidates are."""
