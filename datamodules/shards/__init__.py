"""What a tar holds, and any sample of it by its number."""
