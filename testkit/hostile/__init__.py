"""Hostile inputs, made of valid ones by seeded edits, and the trying of commands on them: a test, and a campaign."""
