"""What is somebody told who looks at no page?"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """Something that a person should look at, or that is over.

    None of its texts has a secret or acts on a terminal. Names in them are written by others all
    the same, so whoever puts them into HTML, or into what a chat takes for a command, escapes them.
    """

    title: str  # what is the matter, in one line
    cause: str  # why, as far as anybody knows, in a sentence
    story: str  # what was tried and what else is the matter, in lines
    next_step: str  # what a person does now
    link: str  # to the page that shows it; a path where nobody said where the web server is
    is_urgent: bool  # False: tomorrow will do
    # Of this very alert, 32 hexadecimal digits: an alert with the same key was sent before, and
    # whoever sent it died before that was noted.
    key: str
    # Of what it is about, 32 hexadecimal digits as well. An alert that something is over has that
    # of the alert which said that it began.
    about: str
    is_over: bool = False

    @property
    def text(self) -> str:
        """All of it, as one sends it."""
        parts = (self.title, f"Why: {self.cause}", self.story, f"Next: {self.next_step}", self.link)
        return "\n".join(part for part in parts if part)
