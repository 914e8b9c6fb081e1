"""What one rank owes another when the sequence is cut: one file for each kind of carry."""
