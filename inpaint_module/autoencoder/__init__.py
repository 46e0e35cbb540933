"""How the embedded autoencoder is made."""
