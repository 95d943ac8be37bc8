"""Taylor models of pretrained networks as small files, and what recorded them."""
