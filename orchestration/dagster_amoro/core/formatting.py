"""How does a person read a moment or a span of time?"""

from datetime import datetime, timedelta


def clock_time(at: datetime) -> str:
    """A moment as a person reads it."""
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def duration(span: timedelta) -> str:
    """A span as a person says it: "42 s", "5 min", "1 h 5 min"."""
    seconds = max(0, round(span.total_seconds()))
    if seconds < 120:  # noqa: PLR2004 - below two minutes seconds say more
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (0 if hours else seconds, "s")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number)


def counted(number: int, noun: str) -> str:
    """A number of things: "1 orphan", "1,000 orphans"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
