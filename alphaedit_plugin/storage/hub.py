"""A folder as a model repository on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ..errors import HubError


def is_name(name: str) -> bool:
    """Whether it is USER/NAME, as the Hub has it."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


@dataclass(frozen=True)
class Repository:
    """USER/NAME on the Hub. One that is there already must be empty, or have the tag `mark` in its model card."""

    name: str
    mark: str

    def check(self) -> None:
        """Whether `publish` would be allowed, asked before the work whose result goes there. Nothing is made.

        Raises HubError: for a name that is none, without a token, a connection or the right to write there, or if the
        repository holds something else.
        """
        if not is_name(self.name):
            raise HubError(f"{self.name!r} is no name of a repository on the Hub: write USER/NAME")
        with self._saying():
            me = HfApi().whoami()
            if self.name.partition("/")[0] not in (
                mine := [me["name"], *(each["name"] for each in me.get("orgs", ()))]
            ):
                raise HubError(
                    f"the token is that of {', '.join(mine)}, who cannot write {self.name}: name one of them"
                )
            found = self._found()
        if found is not None and self.mark not in (found.tags or ()):
            files = [file.rfilename for file in found.siblings or () if file.rfilename != ".gitattributes"]
            if files:
                raise HubError(f"{self.name} holds other things ({files[0]}, …): choose another name")

    def publish(self, folder: Path, *, private: bool = True) -> tuple[str, bool]:
        """Make the repository hold what the folder holds, and nothing else; returns its address, and if it is private.

        `private` says who sees one that is made now; one that is there stays as it is. Earlier contents stay in its
        history. Raises HubError as `check`, or if the connection ends meanwhile.
        """
        self.check()
        with self._saying():
            url = HfApi().create_repo(self.name, private=private, exist_ok=True)
            HfApi().upload_folder(
                repo_id=self.name,
                folder_path=folder,
                commit_message="Upload with alphaedit-plugin",
                delete_patterns="*",
                ignore_patterns=[".*"],  # what a killed writer left
            )
            return str(url), bool(HfApi().model_info(self.name).private)

    def _found(self) -> Any:
        """What the Hub says of the repository; None if there is none, or none that this user may see."""
        try:
            return HfApi().model_info(self.name)
        except RepositoryNotFoundError:
            return None

    @contextmanager
    def _saying(self) -> Iterator[None]:
        """Re-raises what can go wrong as a HubError that says what to do."""
        where = f"cannot publish {self.name}"
        try:
            yield
        except HubError:
            raise
        except LocalTokenNotFoundError as failure:
            raise HubError(f"{where}: there is no token. Run `hf auth login`, or set HF_TOKEN") from failure
        except OfflineModeIsEnabled as failure:
            raise HubError(f"{where}: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set. Unset it") from failure
        except HfHubHTTPError as failure:
            status = failure.response.status_code if failure.response is not None else 0
            said = failure.server_message or str(failure).partition("\n")[0]
            remedy = "put that right, and try again"
            if status in (401, 403):
                remedy = "use a token that may write there"
            elif status == 429 or status >= 500:
                remedy = "try again later"
            raise HubError(f"{where}: the Hub answers {status}, {said}: {remedy}") from failure
        except Exception as failure:  # the hub's HTTP client is another one in every version
            raise HubError(
                f"{where}: {failure}. What is in the folder stays; try again once the Hub is reached"
            ) from failure
