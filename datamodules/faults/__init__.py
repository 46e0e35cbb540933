"""Bad samples and dead workers: written down, limited, replaced."""
