"""The rules of the gate, by the kind of object. `validate.py` lists them; each says in words what is wrong."""
