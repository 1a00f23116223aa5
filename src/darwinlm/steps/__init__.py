"""The steps of a run, one package each."""
