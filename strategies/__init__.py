"""The server side in Flower: which clients, what is sent, how replies become the next global
prompt.
"""
