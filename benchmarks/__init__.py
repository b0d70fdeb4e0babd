"""How fast taskq is, as ratios to the least that a queue on Redis can do."""
