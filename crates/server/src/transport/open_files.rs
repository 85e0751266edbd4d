//! The limit of open files, which limits the number of connections.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// File descriptors reserved for all uses except connections to the listener: the database, probes, files.
pub const RESERVED: usize = 256;
/// The default of `TOLLKEY_MAX_CONNECTIONS` where the limit of open files allows it.
const MAX_CONNECTIONS: usize = 10_000;
/// The lowest default for the number of connections.
const FEWEST: usize = 16;

/// A failure is only logged: the server works with the limit that it has.
pub fn raise() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    if let Err(error) = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    ) {
        tracing::warn!(%error, limit = ?limit.current, "cannot raise the limit of open files");
    }
}

fn files(limit: Option<u64>) -> usize {
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}

fn default_for(limit: usize) -> usize {
    limit
        .saturating_sub(RESERVED)
        .clamp(FEWEST, MAX_CONNECTIONS)
}

/// Returns the default of `TOLLKEY_MAX_CONNECTIONS` for this process after [`raise`].
#[must_use]
pub fn default_max_connections() -> usize {
    default_for(files(getrlimit(Resource::Nofile).maximum))
}

/// Returns the setting, or what the limit of open files leaves after [`RESERVED`], at most 10,000.
/// Fails if the limit is too low for the setting.
pub fn max_connections(setting: Option<usize>) -> anyhow::Result<usize> {
    let limit = files(getrlimit(Resource::Nofile).current);
    let most = limit.saturating_sub(RESERVED);
    match setting {
        Some(connections) if connections > most => anyhow::bail!(
            "TOLLKEY_MAX_CONNECTIONS must be at most {most}: the limit of open files is {limit}, of which {RESERVED} are kept \
             for other things; lower the setting or raise the limit (ulimit -n, LimitNOFILE of systemd)"
        ),
        Some(connections) => Ok(connections),
        None => Ok(default_for(limit)),
    }
}
