"""What is durable: batches and shards in a database, their columns in checksummed files."""
