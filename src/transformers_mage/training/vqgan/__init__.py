"""Training a VQGAN: its autoencoder, its codebook, and what judges its reconstructions."""
