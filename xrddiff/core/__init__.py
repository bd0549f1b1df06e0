"""What everything stands on: errors, seeds, files, names, child processes, ranks. No frames."""
