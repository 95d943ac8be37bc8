"""The command ``lightning-mpq``."""
