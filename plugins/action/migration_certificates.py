"""A CA and two certificates for one run, made in memory on the control node."""

from __future__ import annotations

DOCUMENTATION = r"""
name: migration_certificates
short_description: Make the CA and the two certificates of a migration
description:
  - The keys (ECDSA P-256) never touch the control node's disk and are valid for O(hours). The CA's own key is
    forgotten as soon as both certificates are signed, so nobody can add a third party to the run.
  - Runs on the control node. Use C(no_log), the result holds the keys.
options:
  run_id:
    description: Name of the run, part of the certificates' subject.
    type: str
  run_ids:
    description: Names of many runs, in place of O(run_id); each gets a CA of its own.
    type: list
    elements: str
  hours:
    description: Validity in hours, from one hour before now, as the nodes' clocks may be off.
    type: int
    default: 48
"""

EXAMPLES = r"""
- name: Make the certificates of this run
  migration_certificates:
    run_id: redis-20261121-031500-4f2a
  register: certificates
  no_log: true
"""

RETURN = r"""
source:
  description: PEM texts C(ca), C(cert) and C(key) of the source.
  returned: with O(run_id)
  type: dict
destination:
  description: The same for the destination.
  returned: with O(run_id)
  type: dict
sources:
  description: What C(source) is for one run, by run.
  returned: with O(run_ids)
  type: dict
destinations:
  description: The same for the destinations.
  returned: with O(run_ids)
  type: dict
"""

import datetime
from typing import Any

from ansible.plugins.action import ActionBase
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _signed(
    subject: str,
    public: ec.EllipticCurvePublicKey,
    issuer: str,
    signer: ec.EllipticCurvePrivateKey,
    hours: int,
    is_ca: bool,
) -> str:
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=hours))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
        # CRIU 4.2 (GnuTLS) and Python >= 3.13 (OpenSSL, VERIFY_X509_STRICT) both want the key identifiers.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(x509.KeyUsage(not is_ca, False, False, False, False, is_ca, is_ca, False, False), critical=True)
    )
    if not is_ca:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(subject)]), critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def make(run_id: str, hours: int) -> dict[str, dict[str, str]]:
    """PEM texts for both nodes; the CA's key is gone when this returns."""
    issuer = f"criu-migrate {run_id}"
    authority = ec.generate_private_key(ec.SECP256R1())
    ca = _signed(issuer, authority.public_key(), issuer, authority, hours, is_ca=True)
    made: dict[str, dict[str, str]] = {}
    for role in ("source", "destination"):
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        cert = _signed(role, key.public_key(), issuer, authority, hours, is_ca=False)
        made[role] = {"ca": ca, "cert": cert, "key": pem.decode()}
    return made


class ActionModule(ActionBase):
    """Works on the control node, without a connection."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the texts for source and destination."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(
            {
                "run_id": {"type": "str"},
                "run_ids": {"type": "list", "elements": "str"},
                "hours": {"type": "int", "default": 48},
            },
            required_one_of=[("run_id", "run_ids")],
            mutually_exclusive=[("run_id", "run_ids")],
        )
        hours = arguments["hours"]
        if arguments["run_id"]:
            return {**result, "changed": False, **make(arguments["run_id"], hours)}
        made = {name: make(name, hours) for name in arguments["run_ids"]}
        sides = {f"{role}s": {name: one[role] for name, one in made.items()} for role in ("source", "destination")}
        return {**result, "changed": False, **sides}
