"""What the command `lightning-mpq` trains and quantizes: small networks on small, real images."""
