"""Whose keys a bucket is asked with: one chain (environment, profiles, roles) for every library that asks.

The libraries know different parts of the usual chain: obstore reads no profiles, deltalake reads some. So botocore,
which knows all of it, finds and renews the keys, unless they stand in the environment as they are. They are handed on
in memory alone, when a request is to be made, and kept in nothing that is pickled, logged or saved.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from neuroray.storage.faults import ForbiddenError

if TYPE_CHECKING:
    from obstore.store import S3Credential

# All that decides which keys botocore finds.
_SETTINGS: Final = (
    "HOME",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_EC2_METADATA_DISABLED",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
)
_ASK_AGAIN_AFTER: Final = timedelta(minutes=5)  # botocore renews what is about to run out when it is asked


class FoundKeys:
    """Keys of a profile or a role; called by obstore whenever it needs them."""

    def __init__(self, credentials: Any, region: str | None) -> None:
        self._credentials = credentials
        self.region = region

    def __call__(self) -> S3Credential:
        """The keys as they are now, renewed where they were about to run out."""
        now = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": datetime.now(UTC) + _ASK_AGAIN_AFTER,
        }

    def to_options(self) -> dict[str, str]:
        """The same as options of the Delta library, for one opening of a table."""
        keys = self()
        options = {
            "AWS_ACCESS_KEY_ID": keys["access_key_id"],
            "AWS_SECRET_ACCESS_KEY": keys["secret_access_key"],
            "AWS_SESSION_TOKEN": keys.get("token"),
        }
        return {name: value for name, value in options.items() if value}

    def __reduce__(self) -> Any:
        raise TypeError("keys are not to be pickled: each process finds its own")


def find_keys() -> FoundKeys | None:
    """Keys that are not simply in the environment; None where they are, where none are wanted, and where none are."""
    if os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true"):
        return None
    return _find_keys(tuple(os.environ.get(name) for name in _SETTINGS))


@lru_cache(maxsize=4)
def _find_keys(settings: tuple[str | None, ...]) -> FoundKeys | None:
    from botocore.exceptions import BotoCoreError
    from botocore.session import Session

    try:
        session = Session()
        credentials, region = session.get_credentials(), session.get_config_variable("region")
    except BotoCoreError as error:
        fix = "check AWS_PROFILE and the files in ~/.aws"
        raise ForbiddenError("the keys of the bucket cannot be found", given=error, fix=fix) from error
    return None if credentials is None else FoundKeys(credentials, region)
