"""What a run tells people: the console while it works, one offline HTML page afterwards."""
