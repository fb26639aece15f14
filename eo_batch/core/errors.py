"""Every error a user can meet: one class per kind of handling, one stable code per cause.

An error says what went wrong, where, why, and what to do about it. The text is safe to print: it never
holds a query string, a token or a header. Codes are append-only; `docs/reference/errors.md` lists them.
"""

from __future__ import annotations

from typing import Any


class EoBatchError(Exception):
    """Base of all expected errors.

    Parameters
    ----------
    code : stable identifier from `CODES`, for machines and documentation.
    what : what happened, one clause, lower case start.
    where : which chunk, item, file or key it happened to.
    why : the cause as far as it is known (redacted).
    fix : what the user can do, a full sentence.
    """

    codes: dict[str, int] = {}
    """Code -> exit status of the command line when this error ends a command."""

    def __init__(self, code: str, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        if code not in self.codes:
            raise AssertionError(f"{type(self).__name__} has no code {code!r}")
        self.code, self.what, self.where, self.why, self.fix = code, what, where, why, fix
        super().__init__(str(self))

    @property
    def exit_status(self) -> int:
        """Exit status of a command that ends with this error (docs/reference/errors.md)."""
        return self.codes[self.code]

    def __str__(self) -> str:
        text = f"{self.code}: " + (f"{self.where}: " if self.where else "") + self.what
        text += f": {self.why}" if self.why else ""
        text = text.rstrip(".") + "."
        return f"{text} {self.fix}".rstrip()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.code, self.what, self.where, self.why, self.fix)


def _rebuild(kind: type[EoBatchError], code: str, what: str, where: str, why: str, fix: str) -> EoBatchError:
    return kind(code, what, where=where, why=why, fix=fix)


class ConfigError(EoBatchError, ValueError):
    """The pipeline, a catalog file or an argument is wrong."""

    codes = {
        "config-unknown-key": 2,
        "config-invalid": 2,
        "config-too-large": 2,
        "prompt-invalid": 2,
        "region-invalid": 2,
        "zones-invalid": 2,
    }


class PolicyError(EoBatchError):
    """An input asked for something that is never allowed."""

    codes = {
        "href-scheme": 2,
        "href-host": 2,
        "href-private-address": 2,
        "path-escape": 2,
        "weights-unsafe": 2,
        "weights-hash": 2,
    }


class CatalogError(EoBatchError):
    """The search could not give one complete, trustworthy list of items."""

    codes = {
        "catalog-unreachable": 4,
        "catalog-paging": 4,
        "catalog-empty": 2,
        "item-invalid": 4,
        "item-duplicate": 4,
    }


class AssetError(EoBatchError):
    """Pixels of one asset could not be read, or are not what was announced."""

    codes = {
        "asset-forbidden": 4,
        "asset-not-found": 4,
        "asset-rate-limited": 4,
        "asset-unreachable": 4,
        "asset-timeout": 4,
        "asset-corrupt": 4,
        "asset-contract": 4,
        "asset-too-big": 4,
    }


class ModelError(EoBatchError):
    """The segmenter cannot serve the request, or gave an unusable answer."""

    codes = {
        "model-not-finite": 2,
        "model-shape": 2,
        "model-oom": 7,
        "model-load": 2,
        "weights-missing": 2,
        "model-input": 2,
        "weights-unreachable": 4,
    }


class StoreError(EoBatchError):
    """The run directory cannot be written or read."""

    codes = {"disk-full": 7, "store-unreachable": 7, "store-denied": 7}


class IntegrityError(EoBatchError):
    """Something on disk is not what was written, or a repeated computation gave other bytes."""

    codes = {
        "shard-mismatch": 5,
        "receipt-mismatch": 5,
        "shard-missing": 5,
        "nondeterministic-output": 5,
        "weights-altered": 5,
    }


class ResumeError(EoBatchError):
    """The run on disk was made from something else than what is asked for now."""

    codes = {
        "spec-changed": 8,
        "prompts-changed": 8,
        "weights-changed": 8,
        "format-newer": 8,
        "format-older": 8,
        "code-changed": 8,
    }


class LockError(EoBatchError):
    """Another driver owns the run."""

    codes = {"run-locked": 6, "lease-lost": 6}


class ResourceError(EoBatchError):
    """The work does not fit the machine."""

    codes = {
        "plan-too-big": 7,
        "worker-memory": 7,
        "worker-lost": 7,
        "no-gpu": 7,
        "gpu-lost": 7,
        "cluster-unreachable": 4,
        "cluster-lost": 4,
        "cluster-versions": 7,
    }


CODES: dict[str, type[EoBatchError]] = {
    code: kind
    for kind in (
        ConfigError,
        PolicyError,
        CatalogError,
        AssetError,
        ModelError,
        StoreError,
        IntegrityError,
        ResumeError,
        LockError,
        ResourceError,
    )
    for code in kind.codes
}

EXIT_STATUS: dict[int, str] = {
    0: "complete",
    1: "unexpected bug",
    2: "configuration or policy",
    3: "finished with failed chunks",
    4: "inputs unreachable",
    5: "integrity",
    6: "locked by another driver",
    7: "resources or disk",
    8: "resume refused",
    130: "interrupted: drained and resumable",
}
