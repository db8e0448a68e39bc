"""The error types of the platform. What may be retried and what may not is a matter of type, not of text."""


class BikeError(Exception):
    """Base of all errors a user is meant to read: one line saying what is wrong, where, and what to do."""


class PermanentError(BikeError):
    """Trying again cannot help: bad input, a broken contract, a wrong setting."""


class TransientError(BikeError):
    """Trying again may help: a network fault, a server that is busy."""


class ContractError(PermanentError):
    """A table does not have the columns, types, ranges or keys that its contract states."""


class BundleError(PermanentError):
    """A champion bundle cannot be trusted: missing, altered, unsigned or of another format."""
