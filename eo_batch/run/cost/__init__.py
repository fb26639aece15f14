"""What a run will take, before it starts and as a pilot measures it, and what it took."""
