"""What a user did wrong, for the command line to say in one line."""


class UsageError(ValueError):
    """Bad input of the user's of a command; the message is one line and names the option."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
