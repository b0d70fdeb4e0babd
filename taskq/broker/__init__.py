"""Everything that knows that Redis exists."""
