"""Files written whole or not at all, their checksums, arrays and shards."""
