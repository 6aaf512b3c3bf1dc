"""Run commands on hostile inputs, which are made by random edits of valid ones; for a test and a benchmark."""
