"""Files that come inside installed Python packages, read as data: the packages' own code is never imported."""

import hashlib
import importlib.metadata
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Asset:
    """A file or folder `path` inside the distribution `package`; `version` is the only accepted one, if given."""

    package: str
    path: str
    version: str | None = None
    installed_by: str = "make assets"

    def locate(self) -> Path:
        """The place on disk; `FileNotFoundError`, one sentence, when the package is absent or another version."""
        wanted = f"{self.package} {self.version}" if self.version else self.package
        try:
            distribution = importlib.metadata.distribution(self.package)
        except importlib.metadata.PackageNotFoundError:
            raise FileNotFoundError(
                f"The package {wanted} is not installed; `{self.installed_by}` installs it."
            ) from None
        if self.version not in (None, distribution.version):
            raise FileNotFoundError(
                f"The package {wanted} is needed but {distribution.version} is installed; "
                f"`{self.installed_by}` installs it."
            )
        return Path(str(distribution.locate_file(self.path)))

    def sha256(self) -> str:
        """Hash of the file's content; computed once a process."""
        return _sha256(self.locate())


@cache
def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
