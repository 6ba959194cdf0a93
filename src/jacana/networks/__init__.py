"""Networks: a module becomes a pure function of (selected parameters, inputs); what cannot is refused."""

from jacana.networks.audit import audit as audit
from jacana.networks.audit import refuse_batch_statistics as refuse_batch_statistics
from jacana.networks.chained import followed_by as followed_by
from jacana.networks.context import differentiable as differentiable
from jacana.networks.context import without_autocast as without_autocast
from jacana.networks.examples import Data as Data
from jacana.networks.examples import Examples as Examples
from jacana.networks.examples import as_examples as as_examples
from jacana.networks.examples import as_pairs as as_pairs
from jacana.networks.examples import as_targets as as_targets
from jacana.networks.examples import joined as joined
from jacana.networks.head import with_head as with_head
from jacana.networks.network import Network as Network
from jacana.networks.network import refuse_infinite as refuse_infinite
from jacana.networks.places import places as places
from jacana.networks.selection import Selection as Selection
from jacana.networks.selection import layer_of as layer_of
from jacana.networks.source import Source as Source
from jacana.networks.stream import as_source as as_source
