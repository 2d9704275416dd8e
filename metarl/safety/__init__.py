"""What strangers' files may do: whose run folders may import code, and what their text may do to a terminal.

It imports only the standard library and ``metarl.plugins``, as the command line needs it. ``signing`` signs what was
trained here, ``code`` finds the code that a run names, ``text`` prints text of others, ``paths`` keeps the working
folder out of imports, and ``patience`` limits how long a call may take.
"""

from metarl.safety.code import UnknownCode, check_code
from metarl.safety.paths import optional, without_working_folder
from metarl.safety.patience import TimeLimitError, limited, step_timeout, time_limit
from metarl.safety.signing import SIGNATURE, is_signed, signed
from metarl.safety.text import harmless, harmless_streams

__all__ = [
    "SIGNATURE",
    "TimeLimitError",
    "UnknownCode",
    "check_code",
    "harmless",
    "harmless_streams",
    "is_signed",
    "limited",
    "optional",
    "signed",
    "step_timeout",
    "time_limit",
    "without_working_folder",
]
