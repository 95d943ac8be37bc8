"""Everything that works inside of Lightning's Trainer."""
