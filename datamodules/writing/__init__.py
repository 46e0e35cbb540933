"""Photos, tables, tars and latents into indexed shards."""
