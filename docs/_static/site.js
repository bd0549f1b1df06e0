// The excerpts of search results are fetched from the pages, which a browser refuses for files on disk; the results stay.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// The theme lets the keyboard reach what scrolls, as wide as it is before the fonts have come; a change of size makes it look again.
window.addEventListener("load", () => document.fonts.ready.then(() => window.dispatchEvent(new Event("resize"))));
