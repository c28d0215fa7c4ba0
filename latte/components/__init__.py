"""What a pipeline is made of, out of files: networks, autoencoder, text encoder."""
