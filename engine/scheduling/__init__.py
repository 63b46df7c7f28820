"""Requests, and which of them are computed next: plain data and decisions, no torch, no clock."""
