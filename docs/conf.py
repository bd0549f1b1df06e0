"""Sphinx settings of the documentation site. `build.py` prepares the sources and calls Sphinx on them."""

from configparser import ConfigParser
from multiprocessing.util import Finalize
from pathlib import Path

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
# The renderer's Unix socket exists a moment before it listens, and now and then a build failed on that; its network
# socket is tried again until it answers. On a busy machine both starting and rendering may take longer than 5 s.
katex.KaTeXServer.start_server_process = katex.KaTeXServer.start_network_socket
katex.STARTUP_TIMEOUT = katex.RENDER_TIMEOUT = 60.0
# A page is rendered by a forked process, which ends without `atexit`: its renderer would be left running.
started = katex.KaTeXServer.start


def start_and_end(start=started):
    server = start()
    Finalize(server, server.terminate, exitpriority=1)
    return server


katex.KaTeXServer.start = start_and_end
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]
