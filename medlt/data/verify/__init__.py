"""Examines files that are about to leave as an attacker would: every place where an identity can hide, byte by byte.

It shares the standard's table with the de-identification, and no code that writes: what it reports of a file depends on
the file alone, whoever made it.
"""

from medlt.data.verify.folder import Verified, verify

__all__ = ["Verified", "verify"]
