"""What went wrong with a file of a remote folder: in words for the user, without secrets, or worth another try."""

import re
from collections.abc import Mapping
from typing import Any

from scaletrain.errors import DataError

_EXTRAS = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
# Faults of the request or the settings; back ends share no base class for the faults of a network.
_FINAL = (
    IsADirectoryError,
    NotADirectoryError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    NotImplementedError,
)
_LATER = (408, 425, 429)  # the HTTP answers below 500 that ask for another try


class AbsentError(DataError):
    """The file does not exist, or these credentials may not see it."""


class DamagedError(Exception):
    """The file at the URL is not the one that the index means; the message says what it has."""


class StoppedError(Exception):
    """close() was called while a thread was fetching ahead."""


def fault_of(error: Exception, where: str, protocol: str, text: str) -> DataError | None:
    """What a user reads of an error (`text`: in a few words) that no further try can mend; None for any other."""
    status = status_of(error)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return AbsentError(f"{where} does not exist: check the URL, or copy the whole dataset there")
    if isinstance(error, PermissionError) or status in (401, 403) or "Credential" in type(error).__name__:
        return AbsentError(
            f"{where} may not be read ({text}): check the credentials in the environment or data.storage_options"
        )
    if isinstance(error, ImportError):
        extra = _EXTRAS.get(protocol)
        remedy = f"pip install 'scaletrain[{extra}]'" if extra else "pip install the package that it names"
        return DataError(f"{where} cannot be read, its back end is missing ({text}): {remedy}")
    if isinstance(error, _FINAL) or (status is not None and 400 <= status < 500 and status not in _LATER):
        return DataError(f"{where} cannot be read ({text}): check the URL and data.storage_options")
    return None


def describe(error: Exception, options: Mapping[str, Any]) -> str:
    """The error in a few words, with whatever may be secret struck out."""
    text = " ".join(str(error).split())
    for secret in sorted(_texts(options), key=len, reverse=True):
        text = text.replace(secret, "***")
    return f"{type(error).__name__}: {without_secrets(text)[:200]}" if text else type(error).__name__


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status behind an error of aiohttp, httpx, requests, botocore or gcsfs."""
    if error is None or (type(error).__module__.startswith("aiohttp") and error.__cause__ is not None):
        return None  # to an answer that breaks off or cannot be read, aiohttp gives a status of its own: 400
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for found in (getattr(error, "status", None), getattr(error, "code", None), response):
        status = getattr(found, "status_code", found)
        if isinstance(status, int) or (isinstance(status, str) and status.isdigit()):
            return int(status)
    return status_of(error.__cause__)


def without_secrets(text: str) -> str:
    """Without the user and password of URLs in it, and without their queries, which may be signatures."""
    return re.sub(r"\?[^\s'\")]*", "", re.sub(r"(?<=://)[^/@\s]*@", "", text))


def _texts(value: Any) -> set[str]:
    """The strings inside nested options, those so short that they would strike out half of a message left out."""
    if isinstance(value, Mapping):
        return {text for part in value.values() for text in _texts(part)}
    if isinstance(value, list | tuple):
        return {text for part in value for text in _texts(part)}
    return {str(value)} if isinstance(value, str | int | float) and len(str(value)) > 3 else set()
