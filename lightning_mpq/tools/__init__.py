"""Small things that every other part may use: files, patterns, several processes, progress, attributes set aside."""
