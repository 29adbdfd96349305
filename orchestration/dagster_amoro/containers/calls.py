"""How is a container called, so that whatever it does wrong is a failure of that call alone?"""

from dagster_amoro.containers.base import Container, interruptions
from dagster_amoro.core.errors import StartFailedError, describe
from dagster_amoro.core.model import Resource
from dagster_amoro.core.secrets import Mask


def start(container: Container, resource: Resource) -> dict[str, str]:
    """Starts a resource; returns its start-up properties, as texts.

    Raises:
        StartFailedError: Whatever the container raised, without the resource's secrets.
    """
    try:
        startup = container.request_resource(resource)
        # Not every container of other people returns texts, and only texts can be saved for the
        # release that needs them.
        return {str(key): str(value) for key, value in dict(startup).items()}
    except interruptions():
        raise
    except BaseException as error:
        raise StartFailedError(Mask(resource.properties).hide(describe(error))) from error


def stop(container: Container, resource: Resource, what: str) -> list[str]:
    """Stops a resource as well as it can be done; returns a message if that failed.

    `what` is what the message calls the resource.
    """
    try:
        container.release_resource(resource)
    except interruptions():
        raise
    except BaseException as error:  # noqa: BLE001 - a container may raise anything
        return [f"could not stop {what}: {Mask(resource.properties).hide(describe(error))}"]
    return []
