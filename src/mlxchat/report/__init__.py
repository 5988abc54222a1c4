"""Reports of runs: what is known of a run, its curves, and one HTML file that shows them."""
