"""The rules that no history may ever break."""

import json
from typing import Final

from dagster_amoro.core.model import EventKind, Resource, State
from dagster_amoro.core.policy import RunState
from tests.helpers.attacks import acts
from tests.simulation.container import SECRET, Launch
from tests.simulation.databases import Row
from tests.simulation.life import WORKING, Story, moment
from tests.simulation.world import BROKEN, World

MOST_LOST: Final = 5  # attempts without an end, until a person is asked


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
            if event["kind"] == EventKind.ATTEMPT:
                _check_text(event["message"], 500)
                _check_text(json.loads(event["details"]).get("log", ""), 2000)
            if event["kind"] == EventKind.DETECTED:
                assert event["incident_id"] not in self.stories
                self.stories[event["incident_id"]] = Story(self.policy, moment(event["at"]))
                self._check_detection(event)
            else:
                if event["kind"] == EventKind.RECOVERED:
                    self._check_recovery(event)
                self.stories[event["incident_id"]].go_on(event)
        self.message = events

    def _resource_of(self, event: Row) -> str:
        query = "SELECT resource_id FROM keeper_incident WHERE incident_id = ?"
        found: str = self.stores.rows(query, event["incident_id"])[0]["resource_id"]
        return found

    def _check_detection(self, event: Row) -> None:
        """What is young and never registered is no orphan."""
        key = self._resource_of(event)
        ever = {launch.resource_id for launch in self.container.launches if launch.has_registered}
        if key in self.resources and key not in ever:
            born = moment(self.resources[key]["start_time"])
            is_young = born <= moment(event["at"]) < born + self.policy.grace_period
            assert not is_young, f"{key} is just starting"

    def _check_recovery(self, event: Row) -> None:
        """The registration of what was being stopped, and has ended by now, is no recovery."""
        key = self._resource_of(event)
        standing = [launch for launch in self._registered() if launch.resource_id == key]
        dying = [launch for launch in standing if launch.registered_dying]
        assert not standing or dying != standing, f"{key} was stopped, and is called recovered"

    def _check_incidents(self) -> None:
        incidents = self.stores.rows("SELECT * FROM keeper_incident")
        assert [i["incident_id"] for i in incidents] == sorted(self.stories)
        for incident in incidents:
            story = self.stories[incident["incident_id"]]
            found = (incident["state"], incident["attempts"], incident["dispatches"])
            assert found == (story.state, story.attempts, story.dispatches), "events tell another"
            assert incident["version"] >= story.length - 1
            self._check_cause(incident, self.deaths.get(incident["incident_id"], incident))
            self.deaths[incident["incident_id"]] = incident
            before = self.closed.get(incident["incident_id"], incident)
            assert incident == before, "a closed incident was changed"
            if not story.state.is_open:
                self.closed[incident["incident_id"]] = incident
                assert incident["closed_at"]
                assert incident["claimed_by"] is None
                assert incident["open_resource_id"] is None
        open_ones = [i["resource_id"] for i in incidents if not i["closed_at"]]
        assert len(open_ones) == len(set(open_ones)), "two open incidents of one resource"

    def _check_cause(self, incident: Row, before: Row) -> None:
        """Why a worker died is replaced only by what says more, and not once another was tried.

        Nothing of it acts on whoever reads it, is secret, or is too long.
        """
        old, new = (_certainty(row["cause"]) for row in (before, incident))
        is_same = [row["cause"] for row in (before, incident)]
        assert new > old or is_same[0] == is_same[1], f"{is_same[0]} became {is_same[1]}"
        assert is_same[0] == is_same[1] or not before["attempts"], "the cause of another worker"
        for text, longest in ((incident["cause"], 40), (incident["death"], 300)):
            _check_text(text or "", longest)

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
        """Before each start: it was counted, it is the only one, and nobody stands there.

        It was so at the last look: the step after that asks the ledger whose the orphan is.
        """
        key = resource.resource_id
        assert self.stage.actor is not None
        if self.stage.actor.name in self.missing:
            self._check_scale_up(self.stage.actor.name, resource)
            return
        actor = self.stage.actor
        was_orphan = key in self.orphans[actor.name][0]
        standing = self.stores.rows("SELECT * FROM optimizer WHERE resource_id = ?", key)
        self._note(not standing or was_orphan, f"{key} is started though an optimizer stands")
        there = self.stores.rows("SELECT * FROM resource WHERE resource_id = ?", key)
        self._note(bool(there) or was_orphan, f"{key} is started though its row is gone")
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
        back = launch.returned_at
        has_grace = back is not None and self.now < back + self.policy.grace_period
        is_there = launch.resource_id in self.resources.keys() - self.redeclared
        is_cut_off = is_there and has_grace and launch.is_settled
        self._note(own or not is_cut_off, f"{launch} is stopped while its grace period runs")

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
            SELECT r.thread_count, i.state, i.last_error, i.claimed_by, i.claimed_until,
                   i.attempts + i.prior_attempts - i.interrupted - i.is_attempting AS attempts,
                   i.interrupted + i.is_attempting AS lost,
                   coalesce(i.attempt_ends_at, i.detected_at) AS since,
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
        is_left = row["attempts"] < self.policy.max_retries and row["lost"] < MOST_LOST
        return has_time or trying or is_left

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
        if new in self.starting.values():
            return True
        # A round brings what is missing, which may be less than what was lost.
        brings = self.resources[new]["thread_count"] if new in self.resources else 0
        return bool(new) and brings >= incident["thread_count"] and self._has_hope(new or "")

    def _is_outnumbered(self, incident: Row) -> bool:
        """Whether its group got as many threads after its detection, and has what it must have.

        Where somebody declared it anew meanwhile, only what came after that is in its place.
        """
        (detected,) = [
            e["event_id"]
            for e in self._events(EventKind.DETECTED)
            if e["incident_id"] == incident["incident_id"]
        ]
        group = incident["group_name"]
        own = self.resources.get(incident["resource_id"], {}).get("start_time", "")
        newer = [
            self.resources[key]
            for key, at in self.new_resources.items()
            if at >= detected and key in self.resources and self.resources[key]["start_time"] > own
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
            if incident["state"] != State.KEPT
            and (
                incident["state"] != State.UNSUPPORTED
                or not (
                    self.containers.opts_out
                    or self.resources[incident["resource_id"]]["properties"] == BROKEN
                )
            )
        ]

    def _scaling_up(self) -> list[Row]:
        """The groups whose rounds are not over; where nobody registers, they come to a stop."""
        query = "SELECT * FROM keeper_scale_up WHERE state <> 'stopped'"
        return self.stores.rows(query) if not self.containers.opts_out else []


def _certainty(cause: str | None) -> int:
    """How much a cause says."""
    return {None: 0, "unknown": 1, "never started": 2, "lost host": 2}.get(cause, 3)


def _check_text(text: str, longest: int) -> None:
    """What a container said of an end, as it is kept."""
    assert SECRET not in text, f"a secret is shown: {text}"
    assert acts(text) == [], f"a text acts on whoever reads it: {text!r}"
    assert len(text) <= longest, f"a text is {len(text)} characters long"
