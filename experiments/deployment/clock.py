"""Compare this machine's clock with a site's: ``python clock.py HOST:PORT CA``, by supernode.sh.

A SuperNode signs the time of each request. The SuperLink answers 401 to what is signed more than
5 s ahead of its own clock or 305 s behind it, and the SuperNode ends without a word on why.
"""

from __future__ import annotations

import http.client
import ssl
import sys
import time
from email.utils import parsedate_to_datetime

AHEAD, BEHIND = 5.0, 305.0
"""Seconds that Flower 1.41 and 1.42 bear with."""
UNSURE = 1.0
"""The server says its time in whole seconds, and its answer takes a while to come."""
PATIENCE = 10.0


def verdict(ahead: float) -> str:
    """Return a line on a clock that is wrong by so many seconds, empty if it is right.

    >>> verdict(6.0)[:60]
    'this clock is 6 s ahead of the site; a node whose clock is m'
    >>> verdict(3.0), verdict(-290.0)
    ('', '')
    """
    if -BEHIND + UNSURE < ahead < AHEAD - UNSURE:
        return ""
    where = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the site"
    return (
        f"this clock is {where}; a node whose clock is more than {AHEAD:.0f} s ahead or "
        f"{BEHIND:.0f} s behind is refused (401 Unauthorized): set it, by NTP for example"
    )


def seconds_ahead(site: str, certificates: str) -> float:
    """Return by how many seconds this clock is ahead of the site's, by the date of an answer.

    Raises
    ------
    OSError, http.client.HTTPException, ValueError
        If the site does not answer, or its answer has no date.
    """
    host, _, port = site.rpartition(":")
    context = ssl.create_default_context(cafile=certificates)
    asked = http.client.HTTPSConnection(
        host.strip("[]"), int(port), context=context, timeout=PATIENCE
    )
    try:
        before = time.time()
        asked.request("HEAD", "/")
        answer = asked.getresponse()
        after = time.time()
    finally:
        asked.close()
    there = parsedate_to_datetime(answer.headers["Date"]).timestamp()
    # The date is cut to whole seconds: in the mean it is half a second behind.
    return (before + after) / 2 - (there + 0.5)


def main(site: str, certificates: str) -> int:
    """Print a line if the clock is wrong, or if the site cannot be asked; return the exit code."""
    try:
        said = verdict(seconds_ahead(site, certificates))
    except (OSError, http.client.HTTPException, ValueError, TypeError) as error:
        said = f"{site} cannot be asked what time it is: {error}"
    if said:
        print(f"clock.py: {said}", file=sys.stderr)
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
