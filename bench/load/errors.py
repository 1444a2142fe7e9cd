"""What can be wrong with a bench before anything is measured."""

from qwen_service.errors import ServiceError


class BenchError(ServiceError):
    """The message names the option or the server, and what to do."""
