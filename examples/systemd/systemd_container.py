"""Workers as transient units of systemd, each of which is named after its resource."""

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping

from dagster_amoro import (
    ContainerError,
    PostMortem,
    ReleaseFailedError,
    Resource,
    StartFailedError,
)

LAUNCH = "systemd-invocation-id"  # the start-up property: systemd's own name for one launch
OPTIONS = ("--property=Type=exec", "--property=TimeoutStopSec=20")  # no program: no start
CAUSES = {"signal": "killed", "core-dump": "killed", "oom-kill": "out of memory"}


class SystemdContainer:
    """Runs a command line as a unit that systemd watches, limits and logs.

    | property | meaning |
    |---|---|
    | `command` | program and arguments; `{resource_id}` stands for the id of the resource |
    | `manager` | `system` (default), or `user`: that of the user whom Dagster runs as |
    """

    supports_auto_restart = True

    def __init__(self, _name: str, properties: Mapping[str, str]) -> None:
        self._command: list[str] = json.loads(properties["command"])
        self._manager = f"--{properties.get('manager', 'system')}"

    def request_resource(self, resource: Resource) -> Mapping[str, str]:
        """Starts the unit; systemd refuses where there is one of this name."""
        unit = _unit(resource)
        options = [f"--unit={unit}", f"--description={_after(resource)}", *OPTIONS]
        try:
            self._run("systemd-run", *options, "--", *self.command(resource))
            return {LAUNCH: self._show(unit)["InvocationID"]}
        except ContainerError as error:
            raise StartFailedError(str(error)) from error

    def release_resource(self, resource: Resource) -> None:
        """Stops the launch that the row names, or one that followed it and was never saved."""
        unit, named = _unit(resource), resource.properties.get(LAUNCH)
        try:
            found = self._show(unit)
            if named != found["InvocationID"] and _after(resource) != found["Description"]:
                return  # there is none, or it is of a later launch
            self._run("systemctl", "stop", unit)
            if self._show(unit)["ActiveState"] == "failed":  # which keeps the name from the next
                self._run("systemctl", "reset-failed", unit)
        except ContainerError as error:
            raise ReleaseFailedError(str(error)) from error

    def status(self, resource: Resource) -> str:
        """Whether the launch that the row names runs."""
        try:
            found = self._show(_unit(resource))
        except ContainerError:
            return "unknown"
        is_it = found["InvocationID"] == resource.properties.get(LAUNCH)
        return "running" if is_it and found["ActiveState"] != "failed" else "ended"

    def post_mortem(self, resource: Resource) -> PostMortem | None:
        """How systemd saw it end: it remembers that of units that failed."""
        found = self._show(_unit(resource))
        if found["ActiveState"] != "failed":
            return None
        result, code = found["Result"], found["ExecMainStatus"]
        cause = CAUSES.get(result, f"exit {code}")
        return PostMortem(cause, f"its unit failed with result {result}, status {code}")

    def command(self, resource: Resource) -> list[str]:
        """The arguments, in which systemd would put variables for `$`."""
        values = (each.replace("{resource_id}", resource.resource_id) for each in self._command)
        return [each.replace("$", "$$") for each in values]

    def _show(self, unit: str) -> dict[str, str]:
        keys = "ActiveState,InvocationID,Description,Result,ExecMainStatus"
        lines = self._run("systemctl", "show", f"--property={keys}", unit).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def _run(self, program: str, *arguments: str) -> str:
        """Runs a program of systemd, which gets nothing of Dagster's environment but its paths."""
        kept = {"PATH", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"} & os.environ.keys()
        try:
            done = subprocess.run(
                [program, self._manager, *arguments],
                env={name: os.environ[name] for name in kept},
                capture_output=True,
                check=True,
                text=True,
                timeout=30,
            )
        except subprocess.CalledProcessError as error:
            raise ContainerError(f"{program}: {error.stderr.strip()}") from error
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise ContainerError(f"{program}: {error}") from error
        return done.stdout


def _after(resource: Resource) -> str:
    """The description of a unit that is started while the resource's row is as it is."""
    return f"after {resource.properties.get(LAUNCH, 'no launch')}"


def _unit(resource: Resource) -> str:
    """Ids may hold anything, so their digest is the name."""
    return f"worker-{hashlib.sha256(resource.resource_id.encode()).hexdigest()[:32]}.service"
