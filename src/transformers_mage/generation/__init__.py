"""Many samples: which image is made where, and how they are kept. What `scripts/generate.py` is made of."""
