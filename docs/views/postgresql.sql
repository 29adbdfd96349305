-- Views of the ledger for BI tools: docs/analysts.md says what they mean and who may read them.
-- PostgreSQL: psql -f postgresql.sql, as the keeper's user, in its database.
-- It changes no table, and may be run again.

CREATE OR REPLACE VIEW amoro_incidents AS
SELECT
    keeper_incident.incident_id,
    keeper_incident.resource_id,
    keeper_incident.group_name,
    keeper_incident.container_name,
    keeper_incident.thread_count,
    keeper_incident.state,
    CASE WHEN keeper_incident.closed_at IS NULL THEN NULL
        ELSE keeper_incident.state END AS outcome,
    keeper_incident.detected_at AS detected_at_utc,
    keeper_incident.closed_at AS closed_at_utc,
    keeper_incident.detected_at AT TIME ZONE 'UTC' AS detected_at,
    keeper_incident.closed_at AT TIME ZONE 'UTC' AS closed_at,
    EXTRACT(EPOCH FROM keeper_incident.closed_at - keeper_incident.detected_at)::double precision AS seconds_to_close,
    CASE WHEN keeper_incident.state = 'recovered'
        THEN EXTRACT(EPOCH FROM keeper_incident.closed_at - keeper_incident.detected_at)::double precision
    END AS seconds_to_recover,
    keeper_incident.attempts,
    keeper_incident.cause,
    keeper_incident.death,
    keeper_incident.note,
    keeper_incident.last_error,
    keeper_incident.dry_run
FROM keeper_incident;

CREATE OR REPLACE VIEW amoro_open_incidents AS
SELECT
    keeper_incident.incident_id,
    keeper_incident.resource_id,
    keeper_incident.group_name,
    keeper_incident.container_name,
    keeper_incident.thread_count,
    keeper_incident.state,
    keeper_incident.detected_at AS detected_at_utc,
    keeper_incident.detected_at AT TIME ZONE 'UTC' AS detected_at,
    EXTRACT(EPOCH FROM (NOW() AT TIME ZONE 'UTC') - keeper_incident.detected_at)::double precision AS seconds_open,
    keeper_incident.attempts,
    keeper_incident.cause,
    keeper_incident.death,
    keeper_incident.note,
    keeper_incident.last_error,
    keeper_incident.dry_run
FROM keeper_incident
WHERE keeper_incident.closed_at IS NULL;

CREATE OR REPLACE VIEW amoro_attempts AS
SELECT
    keeper_event.event_id AS attempt_id,
    keeper_event.incident_id,
    keeper_incident.resource_id,
    keeper_incident.group_name,
    keeper_incident.container_name,
    keeper_event.attempt,
    keeper_event.run_id,
    keeper_incident.detected_at AS detected_at_utc,
    keeper_incident.detected_at AT TIME ZONE 'UTC' AS detected_at,
    keeper_event.at AS began_at_utc,
    keeper_event.at AT TIME ZONE 'UTC' AS began_at,
    keeper_event_end.at AS ended_at_utc,
    keeper_event_end.at AT TIME ZONE 'UTC' AS ended_at,
    EXTRACT(EPOCH FROM keeper_event_end.at - keeper_event.at)::double precision AS seconds_to_start,
    CASE
        WHEN keeper_event_end.kind = 'started' THEN 'started'
        WHEN keeper_event_end.kind = 'attempt-failed' THEN 'failed'
        WHEN keeper_incident.is_attempting = 1
            AND keeper_incident.attempts = keeper_event.attempt
            AND keeper_incident.closed_at IS NULL THEN 'under way'
        ELSE 'interrupted'
    END AS result,
    CASE WHEN keeper_event_end.kind = 'attempt-failed' THEN keeper_event_end.message END AS error,
    CASE WHEN keeper_event.details LIKE '%"dry_run": true%' THEN 1 ELSE 0 END AS dry_run
FROM keeper_event
JOIN keeper_incident ON keeper_incident.incident_id = keeper_event.incident_id
LEFT JOIN keeper_event keeper_event_end ON keeper_event_end.event_id = (
    -- + 0: by the index of the incident's events; a planner may rather walk along all numbers.
    SELECT MIN(keeper_event_first.event_id + 0) FROM keeper_event keeper_event_first
    WHERE keeper_event_first.incident_id = keeper_event.incident_id
        AND keeper_event_first.attempt = keeper_event.attempt
        AND keeper_event_first.kind IN ('started', 'attempt-failed')
)
WHERE keeper_event.kind = 'attempt';

-- Three within a day: the default of keeper.alert-flapping. Whoever set another puts it here.
CREATE OR REPLACE VIEW amoro_flapping_resources AS
SELECT
    keeper_incident.resource_id,
    MAX(keeper_incident.group_name) AS group_name,
    COUNT(*) AS incidents_within_a_day,
    MIN(keeper_incident.detected_at) AS first_detected_at_utc,
    MAX(keeper_incident.detected_at) AS last_detected_at_utc,
    MIN(keeper_incident.detected_at) AT TIME ZONE 'UTC' AS first_detected_at,
    MAX(keeper_incident.detected_at) AT TIME ZONE 'UTC' AS last_detected_at
FROM keeper_incident
WHERE keeper_incident.detected_at > (NOW() AT TIME ZONE 'UTC') - INTERVAL '1 day' AND keeper_incident.dry_run = 0
GROUP BY keeper_incident.resource_id
HAVING COUNT(*) >= 3;

CREATE OR REPLACE VIEW amoro_days AS
SELECT
    CAST(keeper_day.day AS date) AS day_utc,
    keeper_day.group_name,
    keeper_day.container_name,
    keeper_day.self_recovered,
    keeper_day.recovered_first,
    keeper_day.recovered_later,
    keeper_day.given_up,
    keeper_day.released,
    keeper_day.superseded,
    keeper_day.attempts,
    keeper_day.missing_seconds,
    keeper_day.missing_thread_seconds
FROM keeper_day
WHERE keeper_day.day <> '';
