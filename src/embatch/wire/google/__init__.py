"""What Google's protocols have in common: how a field is read, an error, a row of results."""
