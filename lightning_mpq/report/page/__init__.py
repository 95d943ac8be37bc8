"""Pages to decide from: self-contained HTML files with their data as JSON, drawn by Observable Plot."""
