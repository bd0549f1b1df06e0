"""Sphinx settings of the documentation site. `build.py` prepares the sources and calls Sphinx on them."""

import os
import socket
import time
from configparser import ConfigParser
from pathlib import Path
from subprocess import PIPE, Popen

from sphinxcontrib import katex

HERE = Path(__file__).parent
settings = ConfigParser(delimiters=["="], interpolation=None)
settings.read(HERE.parent / "settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]

project = settings["title"]
author = settings["author"]
copyright = settings["copyright"]
version = release = settings["version"]

extensions = ["myst_nb", "sphinxcontrib.katex"]
exclude_patterns = ["**.ipynb_checkpoints"]
html_theme = "pydata_sphinx_theme"
html_title = f"xrddiff {release}"
html_static_path = [str(HERE / "_static")]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_show_sourcelink = False
# Single pages have nothing beside them to list, and what they print needs the width.
html_sidebars = {page: [] for page in ("index", "about/changelog", "guides/cluster_tour", "benchmarks/*")}
html_theme_options = {
    "show_prev_next": True,
    "navigation_depth": 2,
    "collapse_navigation": True,
    "secondary_sidebar_items": ["page-toc"],
    "navbar_end": ["theme-switcher"],
    "navbar_persistent": ["search-button"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_toc_level": 2,
    "header_links_before_dropdown": 6,
    "logo": {"text": "xrddiff"},
}

# The notebooks carry their outputs; nothing runs while the site is built.
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_merge_streams = True
nb_code_prompt_show = "Source"
nb_code_prompt_hide = "Source"
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
# Pages are read from disk at beamlines without a network: formulas are rendered now, fonts come along.
katex_prerender = True
katex_css_path = "katex/katex.min.css"
# On a busy machine both starting and rendering may take longer than 5 s.
katex.STARTUP_TIMEOUT = katex.RENDER_TIMEOUT = 60.0


def start_listening(rundir, timeout):
    """Start the renderer behind a Unix socket, which exists a moment before it listens: try again until it answers.

    A network socket holds every small message back for 40 ms, so it is for a folder whose name is too long for the other.
    """
    path = str(rundir / "katex.sock")
    if len(path.encode()) > 100:
        return katex.KaTeXServer.start_network_socket(rundir, timeout)
    process = Popen(katex.KaTeXServer.build_command(socket=path), stdin=PIPE, stdout=PIPE, cwd=rundir)
    last = time.monotonic() + timeout
    while True:
        try:
            return process, connected(socket.AF_UNIX, path)
        except (ConnectionRefusedError, FileNotFoundError):
            if time.monotonic() > last or process.poll() is not None:
                process.kill()
                raise katex.KaTeXServer.timeout_error(timeout) from None
            time.sleep(0.01)


def connected(family, address):
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


def reconnect():
    """In a process that was forked to write pages: a connection of its own to the one renderer."""
    if server := katex.KaTeXServer.katex_server:
        server.sock = connected(server.sock.family, server.sock.getpeername())


def setup(app):
    app.connect("builder-inited", lambda app: katex.KaTeXServer.get())  # before the first fork


katex.KaTeXServer.start_server_process = start_listening
os.register_at_fork(after_in_child=reconnect)
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]
