"""Workers of a Dask scheduler that somebody else has started."""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import urlsplit

from eo_batch.core.errors import ResourceError
from eo_batch.core.hrefs import redact
from eo_batch.run.executors.pool import PoolExecutor
from eo_batch.run.executors.versions import check_versions

CONNECT_S = 30.0


class AddressExecutor(PoolExecutor):
    """A client of the scheduler at `tcp://` or `tls://`; the scheduler and its workers stay when it leaves."""

    def _open(self) -> Any:
        from distributed import Client, Security

        address, tls = self._cluster.kind, self._cluster.tls
        security = None
        if tls is not None:
            files = {"tls_ca_file": tls.ca_file, "tls_client_cert": tls.cert_file, "tls_client_key": tls.key_file}
            security = Security(require_encryption=True, **files)
        if address.startswith("tcp:") and not is_loopback(address):
            self.notes = (f"cluster {address} is not encrypted: whoever reaches its scheduler can run code there",)
        try:
            return Client(address, security=security, set_as_default=False, timeout=CONNECT_S)
        except (OSError, TimeoutError, ValueError, TypeError) as error:
            fix = "Check that the scheduler runs and can be reached from here; tls:// needs [cluster.tls]."
            why = redact(str(error).partition("\n")[0])
            raise ResourceError("cluster-unreachable", "no scheduler answers", where=address, why=why, fix=fix) from None

    def _check(self) -> None:
        check_versions(self._client)


def is_loopback(address: str) -> bool:
    """The host of `tcp://HOST:PORT` is this machine, by a path that no other machine can listen to."""
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
