"""Which model, from where, and what is checked before it is used."""
