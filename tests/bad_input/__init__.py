"""Tables of bad input for every public name: which argument, which values, which error.

A new public function or class needs an entry in one of the files here. `good` holds
arguments that work; each row replaces one of them by values that must be refused.
"""

from tests.bad_input.channels import CHANNELS
from tests.bad_input.factories import FACTORIES
from tests.bad_input.inspection import INSPECTION
from tests.bad_input.modules import MODULES
from tests.bad_input.rows import Entry as Entry
from tests.bad_input.selection import SELECTION

TABLE: dict[str, Entry] = {
    **FACTORIES,
    **SELECTION,
    **CHANNELS,
    **INSPECTION,
    **MODULES,
}
