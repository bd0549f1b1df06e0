// The excerpts of search results are fetched from the pages, which a browser refuses for files on disk; the results stay.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// The theme lets the keyboard reach what scrolls, as wide as it is before the fonts have come; a change of size makes it look again.
window.addEventListener("load", () => document.fonts.ready.then(() => window.dispatchEvent(new Event("resize"))));

// Excerpts have a formula once, as it looks, and no listings.
document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined") return;
  const text = Search.htmlToText;
  Search.htmlToText = (html, anchor) => {
    const page = new DOMParser().parseFromString(html, "text/html");
    page.querySelectorAll(".katex-mathml, details.above-input").forEach((part) => part.remove());
    return text(page.documentElement.outerHTML, anchor);
  };
});
