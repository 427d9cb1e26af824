"""Puts this folder on the path, so that tests in any room can import what they share."""
