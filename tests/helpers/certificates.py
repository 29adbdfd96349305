"""Certificates for servers of tests."""

import shutil
import subprocess
from pathlib import Path

import pytest


def self_signed(folder: Path, name: str) -> Path:
    """A file with a key, and a certificate for this machine that signs itself."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("there is no openssl on PATH (Debian: apt-get install openssl)")
    file, key = folder / f"{name}.pem", folder / f"{name}.key"
    subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    output = ["-keyout", str(key), "-out", str(file)]
    command = [openssl, "req", "-x509", "-days", "2", *kind, *subject, *output]
    subprocess.run(command, check=True, capture_output=True)
    file.write_text(key.read_text() + file.read_text())
    return file
