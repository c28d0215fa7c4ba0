"""From videos or latents to trained weights."""
