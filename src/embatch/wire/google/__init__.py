"""What Google's protocols have in common: how a field is read, what an error says, what a row of results is."""
