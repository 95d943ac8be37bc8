"""Measurements on disk, found again by content."""
