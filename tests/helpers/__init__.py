"""What test files share: small networks and batches, plain settings, oracles, and processes of their own."""
