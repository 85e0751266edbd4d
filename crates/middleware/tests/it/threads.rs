//! A guard does not depend on a runtime of the application.

use std::{sync::mpsc, thread, time::Duration};

use tokio::runtime::{Builder, Runtime};
use tollkey_core::{Family, Mode};
use tollkey_middleware::{
    Guard, Headers, RejectionForm, RequestHead, Requirement, testing::TestKeys,
};

struct Presenting<'a>(&'a str);

impl Headers for Presenting<'_> {
    fn for_each<'a>(&'a self, show: &mut dyn FnMut(&'a str, &'a [u8])) {
        show("x-api-key", self.0.as_bytes());
    }
}

/// Returns the status of a request with that key.
async fn status(guard: &Guard, key: &str) -> u16 {
    let headers = Presenting(key);
    let request = RequestHead {
        method: "GET",
        target: "/any",
        peer: None,
        headers: &headers,
        form: RejectionForm::Problem,
    };
    guard
        .check(&request, &Requirement::any())
        .await
        .map_or_else(|rejection| rejection.status(), |_| 200)
}

fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

fn wait_for_lease(guard: &Guard) {
    while guard.stats().lease_left.is_zero() {
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn guard_outlives_the_runtime_that_connected_it() {
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Test, |_| {});
    let guard = runtime().block_on(keys.caching_guard()).expect("a guard");
    // Longer than a lease, so that it must have been renewed without a runtime of the application.
    wait_for_lease(&guard);
    thread::sleep(Duration::from_millis(3500));
    assert!(!guard.stats().lease_left.is_zero());
    // Works in a runtime without timers, and without a runtime.
    let bare = Builder::new_current_thread().build().expect("a runtime");
    assert_eq!(bare.block_on(status(&guard, &key)), 200);
    assert_eq!(block_on_without_runtime(status(&guard, &key)), 200);
    block_on_without_runtime(guard.shutdown());
    assert_eq!(guard.stats().lease_left, Duration::ZERO);
    // A second call returns too.
    block_on_without_runtime(guard.shutdown());
    assert_eq!(
        block_on_without_runtime(status(&guard, &key)),
        503,
        "a guard that was shut down looks nothing up"
    );
}

/// Runs a future without a runtime.
fn block_on_without_runtime<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::sync::Arc::new(Unpark(thread::current())).into();
    let mut future = std::pin::pin!(future);
    loop {
        match future
            .as_mut()
            .poll(&mut std::task::Context::from_waker(&waker))
        {
            std::task::Poll::Ready(value) => return value,
            std::task::Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn blocked_worker_does_not_delay_other_look_ups() {
    let keys = TestKeys::new();
    let [first, second] = [0, 1].map(|_| keys.add(Family::Commerce, Mode::Test, |_| {}));
    let guard = runtime().block_on(keys.guard()).expect("a guard");
    let (blocked, is_blocked) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let worker = {
        let (guard, keys) = (guard.clone(), keys.clone());
        thread::spawn(move || {
            runtime().block_on(async {
                let paused = keys.pause().await;
                // These look-ups start here; then the handler of another request blocks the worker.
                let lookups: Vec<_> = (0..64)
                    .map(|_| {
                        let (guard, key) = (guard.clone(), first.clone());
                        tokio::spawn(async move { status(&guard, &key).await })
                    })
                    .collect();
                tokio::task::yield_now().await;
                drop(paused);
                blocked.send(()).expect("the test waits");
                released.recv().expect("the test releases the worker");
                for lookup in lookups {
                    assert_eq!(lookup.await.expect("no panic"), 200);
                }
            });
        })
    };
    is_blocked.recv().expect("the worker is blocked");
    assert_eq!(runtime().block_on(status(&guard, &second)), 200);
    release.send(()).expect("the worker waits");
    worker.join().expect("no panic");
}

#[test]
fn last_clone_ends_the_thread() {
    let keys = TestKeys::new();
    let guard = runtime().block_on(keys.caching_guard()).expect("a guard");
    wait_for_lease(&guard);
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task")
            .expect("tasks")
            .flatten();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names
            .filter(|name| name.trim_end() == "tollkey-guard")
            .count()
    };
    let (other, before) = (guard.clone(), threads());
    drop(guard);
    drop(other);
    while cfg!(target_os = "linux") && threads() >= before {
        thread::sleep(Duration::from_millis(1));
    }
}
