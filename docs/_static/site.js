// The excerpts of search results are fetched from the pages, which a browser refuses for files on disk; the results stay.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// The theme lets the keyboard reach blocks that scroll, as wide as they are before the fonts have come.
document.fonts.ready.then(() => window.dispatchEvent(new Event("resize")));
