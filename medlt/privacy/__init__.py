"""Training that hides who was in the collection, its ledger, its claim, and the audit of any run."""
