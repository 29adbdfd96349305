"""The rules that no history may ever break."""

import json

from dagster_amoro.core.model import EventKind, Resource, State
from dagster_amoro.core.policy import RunState
from tests.simulation.container import Launch
from tests.simulation.databases import Row
from tests.simulation.life import WORKING, Story, moment
from tests.simulation.world import BROKEN, World


class Rules(World):
    """The fleet, and what must hold in it after everything that happens."""

    def rules_hold(self) -> None:
        """What no history may ever break."""
        assert not self.wrong, self.wrong
        self._check_events()
        self._check_incidents()
        self._check_workers()
        self.check_resources()
        assert not self.wrong, self.wrong

    def _check_events(self) -> None:
        events = self.stores.rows("SELECT * FROM keeper_event ORDER BY event_id")
        assert events[: len(self.message)] == self.message, "an event was changed"
        for event in events[len(self.message) :]:
            if event["incident_id"] is None:
                continue  # it is a group's
            if event["kind"] == EventKind.DETECTED:
                assert event["incident_id"] not in self.stories
                self.stories[event["incident_id"]] = Story(self.policy, moment(event["at"]))
            else:
                self.stories[event["incident_id"]].go_on(event)
        self.message = events

    def _check_incidents(self) -> None:
        incidents = self.stores.rows("SELECT * FROM keeper_incident")
        assert [i["incident_id"] for i in incidents] == sorted(self.stories)
        for incident in incidents:
            story = self.stories[incident["incident_id"]]
            found = (incident["state"], incident["attempts"], incident["dispatches"])
            assert found == (story.state, story.attempts, story.dispatches), "events tell another"
            assert incident["version"] >= story.length - 1
            before = self.closed.get(incident["incident_id"], incident)
            assert incident == before, "a closed incident was changed"
            if not story.state.is_open:
                self.closed[incident["incident_id"]] = incident
                assert incident["closed_at"]
                assert incident["claimed_by"] is None
                assert incident["open_resource_id"] is None
        open_ones = [i["resource_id"] for i in incidents if not i["closed_at"]]
        assert len(open_ones) == len(set(open_ones)), "two open incidents of one resource"

    def _check_workers(self) -> None:
        tokens = {row["token"] for row in self.stores.rows("SELECT token FROM optimizer")}
        assert tokens == {launch.token for launch in self._registered()}, "optimizer was written"
        settled = [
            launch.resource_id
            for launch in self.container.launches
            if launch.is_alive and launch.is_settled and not launch.is_lost
        ]
        assert len(settled) == len(set(settled)), "two workers run under one id"

    def check_resources(self) -> None:
        """After each commit: a row is removed only when it is kept, and only properties change."""
        self._date_newcomers()
        found = {row["resource_id"]: row for row in self.stores.rows("SELECT * FROM resource")}
        for run_id in self.missing:
            self.missing[run_id] = max(self.missing[run_id], self._missing(run_id))
        for key, expected in self.resources.items():
            if key not in found:
                self._check_removal(key, expected)
            elif found[key] != expected:
                self._check_change(expected, found[key])
        ours = {json.loads(row["details"])["resource"] for row in self._events(EventKind.SCALE_UP)}
        added = found.keys() - self.resources.keys()
        self._note(added <= ours, f"{added} were added")
        removed = "SELECT * FROM keeper_incident WHERE state IN ('exhausted', 'superseded')"
        for row in self.stores.rows(removed):
            key = row["resource_id"]
            done = row["incident_id"] in self.closed or key not in found or key in self.redeclared
            self._note(done, f"{key} is given up and its row is still there")
        self.resources = found
        self.intact = {key: text for key, text in self.intact.items() if key in found}

    def _check_removal(self, key: str, expected: Row) -> None:
        if key in self.starting.values():
            return  # whoever has just recorded it takes it back
        kept = [
            json.loads(row["content"])
            for row in self.stores.rows(
                "SELECT content FROM keeper_removed_row JOIN keeper_incident USING (incident_id) "
                "WHERE resource_id = ?",
                key,
            )
        ]
        self._note(expected in kept, f"{key} was removed as {expected} and is kept as {kept}")
        if expected["properties"] == BROKEN:
            self._lose(key)

    def _check_change(self, expected: Row, found: Row) -> None:
        before, after = expected["properties"], found["properties"]
        self._note(found == expected | {"properties": after}, f"{expected} was changed to {found}")
        self._note(before != BROKEN != after, f"{before} was changed to {after}")
        if before != BROKEN:
            kept = {"launch": None, **json.loads(before)} | {
                "launch": json.loads(after).get("launch")
            }
            self._note(kept == json.loads(after), f"{before} was changed to {after}")

    def check_request(self, resource: Resource) -> None:
        """Before each start: it was counted, it is the only one, and nobody stands there."""
        key = resource.resource_id
        assert self.stage.actor is not None
        if self.stage.actor.name in self.missing:
            self._check_scale_up(self.stage.actor.name, resource)
            return
        standing = self.stores.rows("SELECT * FROM optimizer WHERE resource_id = ?", key)
        self._note(not standing, f"{key} is started though an optimizer stands for it")
        there = self.stores.rows("SELECT * FROM resource WHERE resource_id = ?", key)
        self._note(bool(there), f"{key} is started though its row is gone")
        actor = self.stage.actor
        assert actor is not None
        run_id, incident_id = actor.name.partition("/")[0], self.turns[actor.name][0]
        attempts = self.stores.rows(
            "SELECT * FROM keeper_event WHERE incident_id = ? AND run_id = ? AND kind = ? "
            "ORDER BY event_id DESC LIMIT 1",
            incident_id,
            run_id,
            EventKind.ATTEMPT,
        )
        if not attempts:
            self.wrong.append(f"{key} is started by an attempt that was not counted")
            return
        attempt = (incident_id, attempts[0]["attempt"])
        self._note(attempt not in self.requested, f"incident and attempt {attempt} started twice")
        self.requested.add(attempt)
        (incident,) = self.stores.rows(
            "SELECT * FROM keeper_incident WHERE incident_id = ?", incident_id
        )
        (run,) = (run for run in self.runs if run.run_id == run_id)
        longest = self.keepers[0].settings.claim_timeout + self.container.limits.longest_restart
        lapsed = self.now >= moment(attempts[0]["at"]) + longest
        alone = incident["claimed_by"] in {run_id, None}
        self._note(
            alone or lapsed or run.state is RunState.ENDED,
            f"{key} is started by {run_id} while {incident['claimed_by']} has it",
        )
        late = self.stood.get(actor.name, False) and self._is_stood_in(incident)
        self._note(not late, f"{key} is started though others took its place")

    def _check_scale_up(self, run_id: str, resource: Resource) -> None:
        """Before a refill: so many threads were missing at one moment of its turn."""
        missing = max(self.missing[run_id], self._missing(run_id))
        self._note(
            resource.thread_count <= missing,
            f"{resource.thread_count} threads are started in {resource.group_name}, "
            f"where {missing} are missing",
        )
        self.starting[run_id] = resource.resource_id

    def check_release(self, launch: Launch) -> None:
        """Before each stop: no worker that stands is stopped, unless it is one's own."""
        own = self.stage.actor is not None and launch in self.turns[self.stage.actor.name][1]
        stands = launch.token is not None and (
            launch.resource_id in self.resources.keys() - self.redeclared
        )
        self._note(own or not stands, f"{launch} is stopped though it stands")

    def _check_replaced(self, new: str) -> None:
        """After a refill: none of those in whose place it came was restarted meanwhile."""
        for told in self._events(EventKind.REPLACED):
            if told["message"].startswith(f"{new},"):
                restarted = [
                    each
                    for each in self._events(EventKind.ATTEMPT)
                    if each["incident_id"] == told["incident_id"]
                    and each["event_id"] > told["event_id"]
                ]
                self._note(not restarted, f"{new} came in the place of what was restarted")

    def _missing(self, run_id: str) -> int:
        """The threads that nobody brings to the group of a refilling run, by the raw tables."""
        group = self._group_of(run_id)
        query = """
            SELECT r.thread_count, i.state, i.last_error, i.attempts, i.claimed_by,
                   i.claimed_until, coalesce(i.attempted_at, i.detected_at) AS since,
                   (SELECT kind FROM keeper_event e WHERE e.incident_id = i.incident_id
                    ORDER BY event_id DESC LIMIT 1) AS newest
            FROM resource r LEFT JOIN keeper_incident i ON i.open_resource_id = r.resource_id
            WHERE r.group_name = ?
              AND NOT EXISTS (SELECT 1 FROM optimizer o WHERE o.resource_id = r.resource_id)
        """
        dead = self.stores.rows(query, group)
        coming: int = sum(row["thread_count"] for row in dead if self._is_coming(row))
        return self.min_parallelisms.get(group, 0) - self._live(group) - coming

    def _is_coming(self, row: Row) -> bool:
        if row["state"] is None:
            return True
        if row["state"] not in WORKING or row["last_error"] is not None:
            return False
        has_time = self.now < moment(row["since"]) + self.policy.grace_period
        trying = row["newest"] == EventKind.ATTEMPT and self.now < moment(row["claimed_until"])
        return has_time or trying or row["attempts"] < self.policy.max_retries

    def _group_of(self, run_id: str) -> str:
        return self.turns[run_id][2]

    def _is_stood_in(self, incident: Row) -> bool:
        """Whether its threads came, or are about to come, with another resource."""
        return self._is_replaced(incident) or self._is_outnumbered(incident)

    def _is_replaced(self, incident: Row) -> bool:
        """Whether the very resource that was started for it is there, or about to be."""
        told = [
            e
            for e in self._events(EventKind.REPLACED)
            if e["incident_id"] == incident["incident_id"]
        ]
        new = told[-1]["message"].split(",")[0] if told else None
        return new in self.starting.values() or (new in self.resources and self._has_hope(new))

    def _is_outnumbered(self, incident: Row) -> bool:
        """Whether its group got as many threads after its detection, and has what it must have."""
        (detected,) = [
            e["event_id"]
            for e in self._events(EventKind.DETECTED)
            if e["incident_id"] == incident["incident_id"]
        ]
        group = incident["group_name"]
        newer = [
            self.resources[key]
            for key, at in self.new_resources.items()
            if at >= detected and key in self.resources and key != incident["resource_id"]
        ]
        mine = [
            row
            for row in newer
            if row["group_name"] == group and self._has_hope(row["resource_id"])
        ]
        standing = [row for row in mine if self._stands(row["resource_id"])]
        enough = sum(row["thread_count"] for row in standing) >= incident["thread_count"]
        reached = (
            self._live(group) >= self.min_parallelisms[group]
            if group in self.min_parallelisms
            else False
        )
        return enough and reached

    def _has_hope(self, key: str) -> bool:
        query = "SELECT state FROM keeper_incident WHERE open_resource_id = ?"
        states = [row["state"] for row in self.stores.rows(query, key)]
        return all(state in WORKING for state in states)

    def _stands(self, key: str) -> bool:
        return bool(self.stores.rows("SELECT 1 FROM optimizer WHERE resource_id = ?", key))

    def _date_newcomers(self) -> None:
        """Lets what was just recorded be newer than all else, whatever the database's clock."""
        for row in self.stores.rows("SELECT resource_id FROM resource"):
            key = row["resource_id"]
            if key not in self.resources and key not in self.new_resources:
                self.new_resources[key] = self._newest_event()
                self._date(key)

    def _unfinished(self) -> list[Row]:
        """Open incidents of resources that nothing keeps from being restarted."""
        return [
            incident
            for incident in self.stores.rows(
                "SELECT * FROM keeper_incident WHERE closed_at IS NULL"
            )
            if incident["state"] != State.UNSUPPORTED
            or not (
                self.containers.opts_out
                or self.resources[incident["resource_id"]]["properties"] == BROKEN
            )
        ]

    def _scaling_up(self) -> list[Row]:
        """The groups whose rounds are not over; where nobody registers, they come to a stop."""
        query = "SELECT * FROM keeper_scale_up WHERE state <> 'stopped'"
        return self.stores.rows(query) if not self.containers.opts_out else []
