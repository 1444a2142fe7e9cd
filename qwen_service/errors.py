"""Every error the service raises on purpose. No HTTP in here: api/reply.py has the table class -> status.

ServiceError
├── RequestError            the request cannot be served as it is; the client must change it
│   ├── InvalidRequest      a field is wrong (param names it)
│   │   ├── RequestTooLarge more bytes or items than the configuration allows
│   │   └── EncodedBody     the body is compressed
│   ├── Unsupported         a field this model, runtime or service does not offer
│   │   └── NotOffered      a whole route that this service does not offer
│   ├── UnknownModel        no installed model has this name
│   ├── NotLoaded           the model is installed, another one is running, and autoload is off
│   ├── RequestTimedOut     its body did not arrive in time
│   ├── PromptTooLong       does not fit into the context, even after trimming
│   ├── Unauthorized        no key, or a wrong one
│   └── Forbidden           known, but not allowed here (admin routes, foreign Host)
├── Busy                    come back later: retry_after says when
│   ├── QueueFull           the waiting line is at its bound
│   ├── QueueTimeout        waited longer than the configuration allows
│   ├── Loading             the model is being loaded or restarted
│   └── ShuttingDown        the service is stopping
├── Unavailable             the model gave up: the message is the reason in plain words, and the cure
├── RuntimeFailure          the engine failed this request
│   ├── StartFailed         it did not come up; `permanent` when no restart can cure it
│   ├── Died                its process ended
│   ├── Stalled             no token for too long
│   ├── ProtocolError       it answered something its contract does not allow
│   └── InvalidOutput       what the model wrote does not satisfy the format that was asked for
├── DeviceLost              the card no longer answers
├── Cancelled               ended on request of an administrator
└── InstallError            a model could not be installed
    ├── ChecksumMismatch
    └── DownloadFailed
"""


class ServiceError(Exception):
    """Base of all. `message` is for the person who must act on it: what, which value, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RequestError(ServiceError):
    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidRequest(RequestError):
    pass


class RequestTooLarge(InvalidRequest):
    pass


class EncodedBody(InvalidRequest):
    pass


class Unsupported(RequestError):
    pass


class NotOffered(Unsupported):
    pass


class UnknownModel(RequestError):
    """`name` is what was asked for, `why` what there is instead; `whole`: `why` needs no sentence before it."""

    def __init__(self, name: str, why: str, *, whole: bool = False) -> None:
        super().__init__(why if whole else f"There is no model {name!r}. {why}", param="model")
        self.name, self.why = name, why


class NotLoaded(RequestError):
    pass


class RequestTimedOut(RequestError):
    pass


class PromptTooLong(RequestError):
    """`tokens` and `maximum` are the numbers in the message, where they are known."""

    def __init__(
        self, message: str, *, param: str | None = None, tokens: int | None = None, maximum: int | None = None
    ) -> None:
        super().__init__(message, param=param)
        self.tokens, self.maximum = tokens, maximum


class Unauthorized(RequestError):
    pass


class Forbidden(RequestError):
    pass


class Busy(ServiceError):
    """`retry_after` is in seconds."""

    def __init__(self, message: str, *, retry_after: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueFull(Busy):
    pass


class QueueTimeout(Busy):
    pass


class Loading(Busy):
    pass


class ShuttingDown(Busy):
    pass


class Unavailable(ServiceError):
    pass


class RuntimeFailure(ServiceError):
    pass


class StartFailed(RuntimeFailure):
    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


class Died(RuntimeFailure):
    pass


class Stalled(RuntimeFailure):
    pass


class ProtocolError(RuntimeFailure):
    pass


class InvalidOutput(RuntimeFailure):
    pass


class DeviceLost(ServiceError):
    pass


class Cancelled(ServiceError):
    pass


class InstallError(ServiceError):
    pass


class ChecksumMismatch(InstallError):
    pass


class DownloadFailed(InstallError):
    pass
