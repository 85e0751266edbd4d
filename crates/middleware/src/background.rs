//! The thread of a guard. Its subscription and its look-ups run there, whatever runtime the application's requests are on:
//! a runtime that ends, or a worker that is blocked, takes neither of them along.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Handle},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};

/// How long the end of a subscription may take: a lease of the default length. Afterwards no revocation waits for this process.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// A thread with a runtime, until it is [stopped](Background::stop) or dropped.
pub(crate) struct Background {
    runtime: Handle,
    stop: watch::Sender<bool>,
    /// Its sender is dropped when the thread ends.
    ended: watch::Receiver<()>,
    subscription: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Background {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the operating system gives no thread or no event queue.
    pub(crate) fn start() -> io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let (alive, ended) = watch::channel(());
        let subscription = Arc::<Mutex<Option<JoinHandle<()>>>>::default();
        let (started, runtime) = mpsc::sync_channel(1);
        let running = Arc::clone(&subscription);
        thread::Builder::new()
            .name("tollkey-guard".to_owned())
            .spawn(move || {
                let _alive = alive;
                // Built here: a runtime must not be dropped in another one, as it would be if there were no thread.
                let runtime = match Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(started.send(Err(error))),
                };
                let _ = started.send(Ok(runtime.handle().clone()));
                runtime.block_on(async {
                    until_stopped(stopped).await;
                    let task = running
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .take();
                    let Some(task) = task else { return };
                    match timeout(STOP_LIMIT, task).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::error!(%error, "the subscription failed"),
                        Err(_) => tracing::warn!(
                            "the subscription could not be ended in time; its lease has expired"
                        ),
                    }
                });
                // A look-up of a host name may still hang in a thread of its own.
                runtime.shutdown_background();
            })?;
        let runtime = runtime
            .recv()
            .map_err(|_| io::Error::other("the thread of the guard failed"))??;
        Ok(Self {
            runtime,
            stop,
            ended,
            subscription,
        })
    }

    /// The runtime of the thread. Tasks on it are canceled when the thread ends.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Runs the subscription that `subscribe` makes of the future that says when it has to end.
    pub(crate) fn subscribe<F: Future<Output = ()> + Send + 'static>(
        &self,
        subscribe: impl FnOnce(std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) -> F,
    ) {
        let task = self
            .runtime
            .spawn(subscribe(Box::pin(until_stopped(self.stop.subscribe()))));
        *self
            .subscription
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    /// Ends the subscription and the thread, and waits for that: no longer than a lease. Needs no runtime of the caller's.
    pub(crate) async fn stop(&self) {
        self.stop.send_replace(true);
        // An error says that the thread has ended; nothing is ever sent.
        let _ = self.ended.clone().changed().await;
    }
}

/// Waits until the thread is to end: it was stopped, or the last clone of the guard was dropped.
async fn until_stopped(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
