"""What can be asked of embatch, whatever face it is asked through."""
