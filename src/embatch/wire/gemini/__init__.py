"""Google's protocol, side by side: what is read of it and what is written."""
