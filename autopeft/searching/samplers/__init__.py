"""Samplers: what proposes designs. Each is made by a factory that an entry point in `autopeft.samplers` names."""
