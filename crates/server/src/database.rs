//! Opens the database from the settings.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::sync::oneshot;
use tollkey_core::Clock;
use tollkey_store::{Backend, OpenError, OpenOptions, SchemaError, Store};

use crate::config::{DatabaseKind, Settings};

/// Opens the database from the settings, and creates a missing SQLite file. While a PostgreSQL server cannot be
/// reached, retries for `TOLLKEY_DATABASE_WAIT_SECONDS`. Blocks. Does not migrate.
pub fn open_store(settings: &Settings, clock: Arc<dyn Clock>) -> anyhow::Result<Store> {
    connect(settings, &clock, true)
}

/// Like [`open_store`], for an existing database: creates no file, and the schema must be that of this build.
pub fn open_existing_store(settings: &Settings, clock: Arc<dyn Clock>) -> anyhow::Result<Store> {
    anyhow::ensure!(
        settings.database.kind() != DatabaseKind::SqliteMemory,
        "an in-memory database belongs to one server process; set DATABASE_URL to the database of the server"
    );
    let store = connect(settings, &clock, false)?;
    store
        .check_schema()
        .with_context(|| settings.database.url.target())?;
    Ok(store)
}

fn connect(settings: &Settings, clock: &Arc<dyn Clock>, create: bool) -> anyhow::Result<Store> {
    let options = OpenOptions {
        pool_size: settings.database.pool,
        create,
        ..OpenOptions::new(settings.database.url.expose())
    };
    let mut wait = DatabaseWait::new(settings.database.wait);
    loop {
        match Store::open(options.clone(), Arc::clone(clock)) {
            Ok(store) => return Ok(store),
            Err(error) => wait.pause_after(error)?,
        }
    }
}

/// The first pause between two attempts to open the database; each is twice as long as the previous one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
const WAIT_LOG_INTERVAL: Duration = Duration::from_secs(5);

struct DatabaseWait {
    limit: Duration,
    began: Instant,
    pause: Duration,
    logged: Option<Instant>,
}

impl DatabaseWait {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            began: Instant::now(),
            pause: FIRST_PAUSE,
            logged: None,
        }
    }

    /// Pauses before the next attempt, or returns the error if retrying cannot help or the time has run out.
    fn pause_after(&mut self, error: OpenError) -> anyhow::Result<()> {
        if !error.is_transient() || self.limit.is_zero() {
            return Err(error.into());
        }
        let left = self.limit.saturating_sub(self.began.elapsed());
        if left.is_zero() {
            let seconds = self.limit.as_secs();
            let waited = format!("gave up after {seconds} seconds (TOLLKEY_DATABASE_WAIT_SECONDS)");
            return Err(anyhow::Error::from(error).context(waited));
        }
        if self
            .logged
            .is_none_or(|at| at.elapsed() >= WAIT_LOG_INTERVAL)
        {
            self.logged = Some(Instant::now());
            tracing::warn!(%error, seconds_left = left.as_secs(), "waiting for the database");
        }
        thread::sleep(self.pause.min(left));
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

/// Migrates SQLite, and PostgreSQL if configured. Otherwise the schema must be that of this build. Blocks.
pub fn prepare_schema(settings: &Settings, store: &Store) -> anyhow::Result<()> {
    let prepare = || -> Result<(), SchemaError> {
        if store.backend() == Backend::Sqlite || settings.database.migrate {
            let applied = store.apply_migrations()?;
            if !applied.is_empty() {
                tracing::info!(migrations = applied.join(", "), "migrations applied");
            }
        }
        store.check_schema()
    };
    prepare().with_context(|| settings.database.url.target())
}

/// Opens the database and prepares its schema on a separate thread, which does not delay the exit on a signal.
pub async fn open_prepared(settings: &Settings, clock: &Arc<dyn Clock>) -> anyhow::Result<Store> {
    let (settings, clock) = (settings.clone(), Arc::clone(clock));
    let open = move || -> anyhow::Result<Store> {
        let store = open_store(&settings, clock)?;
        prepare_schema(&settings, &store)?;
        Ok(store)
    };
    let (done, result) = oneshot::channel();
    thread::Builder::new()
        .name("tollkey-open".into())
        .spawn(move || {
            // An error means that a signal came first and dropped the receiver.
            let _ = done.send(open());
        })?;
    result
        .await
        .context("the thread that opens the database panicked")?
}
