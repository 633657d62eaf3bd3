"""A directory, local, `s3://` or `gs://` (pyarrow.fs), in which a file or a directory is whole or absent.

What holds when a writer is killed at any moment:

    a file, local          Written beside its target (NAME.HOST-PID-X.part), then renamed.
    a file, remote         Finished locally, then uploaded. An upload that breaks off leaves nothing visible. (S3 keeps
                           its parts hidden, and charges for them, until a rule of the bucket aborts it.)
    a directory, local     Written beside its target. An existing one is exchanged for it in one step (renameat2); where
                           the file system cannot do that, as below.
    a directory, remote    Uploaded beside its target. Then a file NAME.whole says where it is, and readers take it from
                           there until it has been copied to its target and the old one is gone.

So there is always the old version or the new one. A directory is read by `fetched`, which gives the files of one
version of a remote one; `read` of one of its files may give the old version until the new one has been copied. What
does not hold: a reader of a local directory may find files of both versions while it is exchanged; two writers of one
remote directory at the same time both succeed, and a reader may find files of both for a moment.
Files that a killed writer left are not listed, and the next writer of the name removes them.

Faults of S3 are tried again for some 40 s with growing pauses, a silent connection after SILENCE seconds.
"""

from cxrlt_ray.storage.finite import finite
from cxrlt_ray.storage.messages import NotThere
from cxrlt_ray.storage.store import Store

__all__ = ["NotThere", "Store", "finite"]
