"""One sample: image, caption, mask, and cached latents."""
