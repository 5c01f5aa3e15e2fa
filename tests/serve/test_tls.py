"""`ijfs serve` with a certificate, for clients on other machines."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from live.live_env import LiveEnv
from serve.conftest import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.criu]


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """One for the loopback that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ijfs tests")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    cert, private = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    format_ = serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, format_, serialization.NoEncryption()))
    return cert, private


def test_it_speaks_tls_with_the_certificate_that_is_given_and_nothing_else(
    live_env: LiveEnv, certificate: tuple[Path, Path]
) -> None:
    cert, private = certificate
    server = RunningServer(live_env.repo, live_env.work, "--tls-cert", str(cert), "--tls-key", str(private))
    try:
        assert server.url.startswith("https://")
        known = ssl.create_default_context(cafile=str(cert))
        with urllib.request.urlopen(f"{server.url}/healthz", context=known) as answer:
            assert answer.read() == b"ok\n"
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(f"{server.url}/healthz")
        with pytest.raises(OSError):  # noqa: PT011  (how it breaks off is the system's)
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz")
    finally:
        server.end()
