"""Atomic writing of files, their checksums, arrays and shards."""
