"""The error that a user of the phantom can fix."""


class PhantomError(Exception):
    """The phantom cannot be written; the message is one line that says why and what to do."""
