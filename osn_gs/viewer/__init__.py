"""Pages in the browser, served with viser."""
