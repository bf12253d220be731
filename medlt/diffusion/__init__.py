"""Codecs, denoisers, their training, guidance and the sampler."""
