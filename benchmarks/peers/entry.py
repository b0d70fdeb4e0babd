"""What a peer's own worker command imports: the app of the peer that BENCH_PEER names."""

from __future__ import annotations

from benchmarks.peers.catalog import named
from benchmarks.peers.peer import Place

place = Place.here()
app = named(place.peer).open(place).app
