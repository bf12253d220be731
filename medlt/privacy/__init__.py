"""Differentially private training, its ledger, the privacy claim of a run, and the audit of any run."""

from medlt.privacy.claims import Claim, claim

__all__ = ["Claim", "claim"]
