"""A certificate for the API server stand-in: clients inside a cluster speak TLS only."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path


def make_certificate(folder: Path, *addresses: str) -> tuple[ssl.SSLContext, Path]:
    """What a server at these addresses needs, made anew by the openssl command, and the file that its clients trust."""
    certificate, key = folder / "server.crt", folder / "server.key"
    names = ",".join(f"IP:{address}" for address in addresses)
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 2 -subj /CN=kubernetes"
    extensions = f"-addext subjectAltName={names} -addext keyUsage=digitalSignature,keyCertSign"
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *extensions.split(), *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate
