"""The error that a user of the phantom can cause and can fix."""


class PhantomError(Exception):
    """What was asked of the phantom cannot be made; the message is one line that says why and what to do."""
