"""A CA that tests make, and the certificates that it issues."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path
from typing import Any


class Authority:
    """A CA, made by `openssl` in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.pem, self._key = folder / f"{name}.pem", folder / f"{name}.key"
        self._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", self._key, "-out", self.pem, "-days", "2", "-subj", f"/CN={name}",
            "-addext", "basicConstraints=critical,CA:TRUE",
            "-addext", "keyUsage=critical,keyCertSign",
        )  # fmt: skip

    def context(self, names: str, days: str = "2") -> ssl.SSLContext:
        """Return what a server of these names needs: `DNS:localhost,IP:127.0.0.1`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue(names, days))
        return context

    def issue(self, names: str, days: str = "2") -> tuple[Path, Path]:
        """Return the files of a certificate for these names, and of its key."""
        stem = self.folder / f"{self.name}-{names.translate(str.maketrans(':,', '--'))}-{days}"
        request, pem, key = (stem.with_suffix(end) for end in (".csr", ".pem", ".key"))
        self._openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", key, "-out", request, "-subj", "/CN=server",
        )  # fmt: skip
        extensions = stem.with_suffix(".ext")
        extensions.write_text(f"subjectAltName={names}\n")
        self._openssl(
            "x509", "-req", "-in", request, "-CA", self.pem, "-CAkey", self._key,
            "-CAcreateserial", "-out", pem, "-days", days, "-extfile", extensions,
        )  # fmt: skip
        return pem, key

    def _openssl(self, *words: Any) -> None:
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
