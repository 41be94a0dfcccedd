"""The text hal-tiny learns from, made by seeded grammars: no file is read and nothing is downloaded."""
