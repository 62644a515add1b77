"""Pages for people: from the files of a run, or from the arms of a comparison, to one HTML file."""
