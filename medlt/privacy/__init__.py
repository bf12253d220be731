"""Training that hides who was in the collection, its ledger, its claim, and the audit of any run."""

from medlt.privacy.claims import Claim, claim

__all__ = ["Claim", "claim"]
