"""What people use: the command line, widgets, and `import xrddiff as xd`."""
