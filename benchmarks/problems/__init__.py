"""What is measured on: images and networks trained on them, and allocation problems."""
