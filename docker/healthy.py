"""Exit with 0 if an address answers with status 200: `healthy.py URL [CA_CERTIFICATE]`.

The health check of the containers; the image has no curl.
"""

import ssl
import sys
import urllib.request

url, *authority = sys.argv[1:]
context = ssl.create_default_context(cafile=authority[0]) if authority else None
# An own opener: a proxy of the surroundings must not answer for a neighbour.
opener = urllib.request.build_opener(
    urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
)
try:
    with opener.open(url, timeout=4) as answer:
        sys.exit(answer.status != 200)
except OSError as error:
    sys.exit(f"{url}: {error}")
