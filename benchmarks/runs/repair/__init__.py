"""What each repair gains on images that no choice has seen."""
