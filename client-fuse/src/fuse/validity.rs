//! Times for which the kernel may believe what an answer says.

use fuser::Generation;
use std::time::Duration;

/// Time for which the kernel may believe an entry without asking. The kernel counts in its clock's ticks: the least
/// time that is not zero is up to 8 ms.
pub(super) const ENTRY_VALIDITY: Duration = Duration::ZERO;
/// As above, of attributes. At zero a stat(2) is a lookup and a getattr for each directory on its path and for the
/// file: the kernel asks again for what the lookup has just brought, to check permissions. See [`super::walk`].
pub(super) const ATTRIBUTE_VALIDITY: Duration = Duration::ZERO;
/// Inode numbers are never reused, so that one generation does.
pub(super) const GENERATION: Generation = Generation(0);
