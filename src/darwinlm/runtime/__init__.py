"""What every room stands on: errors, artifacts, processes, memory, devices and the console."""
