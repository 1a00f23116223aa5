"""One thin file per stage: what it reads, what its key is, what it leaves behind."""
