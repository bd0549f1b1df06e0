"""`python -m xrddiff` is the command `xrddiff`."""

from xrddiff.app.entry import command_line

if __name__ == "__main__":
    command_line()
