"""What a run gives away, measured: copies, membership, identity, canaries."""
