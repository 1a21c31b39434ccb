"""Where server and clients run: in one process, on workers of Ray, as processes of a real
federation on this machine.
"""
