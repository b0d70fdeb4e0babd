"""Everything at once: ten thousand messages while their workers and Redis are being killed."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from tests.failure.books import check_after
from tests.failure.producer import MOST_LOST, survivors
from tests.failure.soak import FLEET_FAULTS, KILL_SECONDS, Soak
from tests.failure.storm import Load, Storm, drawn, shuffled

MESSAGES = 10_000
FAULTS = {"kill_child": 42, "freeze_child": 16, "kill_redis": 2}


@pytest.mark.timeout(280)
@pytest.mark.usefixtures("patient")
def test_ten_thousand_messages_survive_kills_freezes_and_two_deaths_of_redis(
    new_scene: Any, seed: int
) -> None:
    scene = new_scene()
    storm = Storm(scene, seed)
    load = Load(scene, seed, rate=170, count=MESSAGES)
    began = time.monotonic()
    load.start()
    storm.run(shuffled(seed, FAULTS), gap=(0.7, 1.3))
    stormed = time.monotonic()
    load.join(120)
    assert len(load.expected) == MESSAGES
    books = check_after(scene, load.expected)
    with scene.client() as client:
        dead = {one.decode() for one in client.zrange(f"{scene.base()}dead", 0, -1)}
    guilty = {one.wire_id for one, value in load.expected.items() if value is KeyError}
    assert dead <= guilty, "an innocent message was set aside"
    lost = sum(worker.log.count("the lease on default was lost") for worker in scene.workers)
    runs = sum(len(one.runs) for one in books.accounts)
    print(
        f"seed {seed}: {MESSAGES} messages, {runs} runs, faults {dict(storm.done)}, "
        f"{lost} leases lost; storm {stormed - began:.0f} s, all {time.monotonic() - began:.0f} s; "
        f"ends {dict(Counter(one.record.state.name for one in books.accounts))}"
    )
    # Of those frozen, some are replaced, or lose Redis as well, before they can tell.
    assert lost >= FAULTS["freeze_child"] / 2


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("topology", ["sentinel", "cluster"], indirect=True)
def test_ten_thousand_messages_survive_kills_and_the_death_of_a_master_each_twenty_seconds(
    new_scene: Any, seed: int
) -> None:
    """`python -m tests.failure.soak --topology cluster` does the same for half an hour."""
    scene = new_scene()
    storm = Storm(scene, seed)
    load = Load(scene, seed, rate=220, count=MESSAGES)
    began = time.monotonic()
    load.start()
    faults = drawn(seed, FLEET_FAULTS, lambda: load.running, KILL_SECONDS)
    storm.run(faults, gap=(0.5, 1.0))
    stormed = time.monotonic()
    load.join(200)
    assert len(load.expected) == MESSAGES
    kept = survivors(scene, load.expected, storm.done["kill_master"] * MOST_LOST, seconds=90)
    books = check_after(scene, kept)
    print(
        f"seed {seed}: {sum(len(one.runs) for one in books.accounts)} runs, faults "
        f"{dict(storm.done)}; storm {stormed - began:.0f} s, all {time.monotonic() - began:.0f} s"
    )
    assert storm.done["kill_master"] >= 2


@pytest.mark.timeout(200)
@pytest.mark.usefixtures("patient")
def test_a_minute_of_every_fault_there_is_breaks_no_invariant(new_scene: Any, seed: int) -> None:
    """F43; `make soak` does the same for half an hour."""
    soak = Soak(new_scene(proxied=True), seed)
    until_then = time.monotonic() + 60
    while time.monotonic() < until_then:
        soak.round(until_then)
        print(soak.report())
    soak.finish()
