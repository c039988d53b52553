"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """One clear sentence that names the value, the file and the remedy.

    The command line prints it without a traceback and exits with status 2; Python callers catch it as usual.
    """
