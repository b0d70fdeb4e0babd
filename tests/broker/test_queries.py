"""look.lua and survey.lua: what people ask; nothing is changed by asking."""

from __future__ import annotations

from taskq.broker import claims, queries
from taskq.broker.queries import Look, TaskSurvey
from taskq.model.states import State
from tests.broker.queues import ADD, CRAWL, LEASE_MS, MAIL, TICK_MS, Queue, Worker


def look(queue: Queue, id: str, task: str | None = None) -> Look:
    return queue.run(queries.look(queue.base, id, task))


class TestLook:
    def test_at_nothing(self, queue: Queue) -> None:
        assert look(queue, "f" * 32) == Look(None, b"", None, "")

    def test_at_a_queued_message(self, queue: Queue) -> None:
        [id] = queue.queued()
        seen = look(queue, id)
        assert seen == Look(queue.record(id), b"", None, "", None)
        assert seen.record is not None
        assert seen.record.state is State.QUEUED

    def test_at_a_scheduled_one(self, queue: Queue) -> None:
        one = queue.message(due="4102444800000", body=b"\x00bytes")
        queue.schedule(one)
        seen = look(queue, one.message.id)
        assert (seen.message, seen.due_ms, seen.worker) == (one.raw, 4102444800000, "")

    def test_whether_a_worker_knows_its_task(self, queue: Queue) -> None:
        [queued] = queue.queued()
        later = queue.message(due="+60000")
        queue.schedule(later)
        assert look(queue, queued, ADD).known is False
        assert look(queue, later.message.id).known is False
        worker = queue.worker({ADD: "t"})
        assert look(queue, queued, ADD).known is True
        assert look(queue, queued).known is None  # of what task it is, nobody said
        assert look(queue, later.message.id).known is True
        queue.reclaim(worker)
        assert look(queue, queued, ADD).known is False

    def test_at_a_running_one(self, queue: Queue) -> None:
        one = queue.message(body=b"\x00bytes")
        queue.enqueue(one)
        queue.worker().claim()
        seen = look(queue, one.message.id)
        assert (seen.message, seen.due_ms, seen.worker) == (one.raw, None, "host:1")

    def test_at_one_that_waits_for_another_attempt(self, queue: Queue) -> None:
        one = queue.message()
        queue.enqueue(one)
        worker = queue.worker()
        worker.claim()
        worker.finish(worker.retry(one.message.id, 60_000, b"history"))
        seen = look(queue, one.message.id)
        assert seen.record is not None
        assert (seen.record.state, seen.message) == (State.RETRYING, one.raw)
        assert seen.due_ms is not None

    def test_at_one_that_is_over(self, queue: Queue) -> None:
        [id] = queue.queued()
        worker = queue.worker()
        worker.claim()
        worker.finish(worker.succeeded(id, b"report"))
        seen = look(queue, id)
        assert seen.record is not None
        assert (seen.record.tail, seen.message, seen.worker) == (b"report", b"", "host:1")
        queue.reclaim(worker)
        assert look(queue, id).worker == ""

    def test_at_one_that_is_being_taken_back(self, queue: Queue) -> None:
        ids = queue.queued(501)
        worker = queue.worker()
        worker.claim(600)
        queue.run(claims.reclaim(queue.base, LEASE_MS, TICK_MS, worker.id))
        states = [seen.record.state for id in ids if (seen := look(queue, id)).record]
        assert (states.count(State.RUNNING), states.count(State.QUEUED)) == (1, 500)


class TestSurvey:
    def test_of_an_empty_queue(self, queue: Queue) -> None:
        survey = queue.survey()
        assert (survey.queue, survey.tasks, survey.workers) == ("default", {}, [])
        assert (survey.due, survey.counts) == (0, {})

    def test_of_a_busy_one(self, queue: Queue) -> None:
        worker = queue.worker()
        queue.queued(3)
        queue.queued(2, priority=9)
        queue.queued(4, CRAWL)
        queue.schedule(queue.message(MAIL, due="+60000"))
        for id in worker.claim(3, coroutines=1)[:1]:
            worker.finish(worker.retry(id, 60_000))
        survey = queue.survey()
        assert survey.tasks == {
            ADD: TaskSurvey(queued=2, running=2, scheduled=1),
            CRAWL: TaskSurvey(queued=3, running=1),
            MAIL: TaskSurvey(scheduled=1),
        }
        [seen] = survey.workers
        assert (seen.name, seen.running) == ("host:1", 3)
        assert 0 < seen.lease_left <= LEASE_MS / 1000

    def test_a_worker_whose_lease_ran_out_is_none(self, queue: Queue) -> None:
        worker = queue.worker()
        queue.queued()
        worker.claim()
        queue.call("ZADD", "workers", queue.now_ms - 2000, worker.id)
        survey = queue.survey()
        assert survey.workers == []
        assert survey.tasks[ADD].running == 1  # until it is taken back

    def test_what_is_due_is_counted(self, queue: Queue) -> None:
        queue.schedule(*queue.messages(2, due="1"), queue.message(due="+60000"))
        assert queue.survey().due == 2

    def test_a_task_that_nobody_knows(self, queue: Queue) -> None:
        queue.worker({ADD: "t"})
        queue.queued(1, ADD)
        queue.queued(1, MAIL)
        tasks = queue.survey().tasks
        assert (tasks[ADD].known, tasks[MAIL].known) == (True, False)

    def test_a_task_whose_last_worker_left(self, queue: Queue) -> None:
        leaver = queue.worker({ADD: "t"})
        queue.worker({MAIL: "t"})
        queue.queued()
        queue.reclaim(leaver)
        assert not queue.survey().tasks[ADD].known

    def test_messages_that_are_being_taken_back_still_run(self, queue: Queue) -> None:
        queue.queued(502)
        worker: Worker = queue.worker()
        worker.claim(600)
        queue.run(claims.reclaim(queue.base, LEASE_MS, TICK_MS, worker.id))
        task = queue.survey().tasks[ADD]
        assert (task.queued, task.running) == (500, 2)


def test_asking_changes_nothing(queue: Queue) -> None:
    worker = queue.worker()
    queue.queued(3)
    queue.schedule(queue.message(due="+60000"))
    worker.claim(1)
    names, records = queue.keys(), queue.records()
    for id in (*records, "f" * 32):
        look(queue, id)
    queue.survey()
    assert (queue.keys(), queue.records()) == (names, records)
