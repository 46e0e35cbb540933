"""What the doctor reads, measures and says."""
