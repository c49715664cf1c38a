"""Large payloads: bodies that are kept outside the store, in files or objects, and go through no process's memory.

spool.py    a body on its way in: to a temporary file, counted and hashed
files.py    reading files piece by piece, without holding up the event loop
store.py    what a blob store is, and reading from one with an eye on the digest
local.py    a local (or shared) directory
s3.py       an S3-compatible store
sweep.py    deleting what no operation has any more

Names: a blob belongs to one operation and is called by its SHA-256 there, so that storing it twice is storing it once,
and deleting an operation's blobs concerns nobody else. Knows no operation and no HTTP; who calls it decides what is
large. Agents use the spool for inputs that their handlers want as `mesh.Blob`.
"""
