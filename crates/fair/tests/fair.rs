//! Tests of the sharing of permits among owners.

use std::{future::Future, pin::Pin, task::Poll};

use tollkey_fair::{FairSemaphore, Limits, Permit, Priority, QueueFull};

type Acquired = Result<Permit<&'static str>, QueueFull>;
type Request = Pin<Box<dyn Future<Output = Acquired>>>;

fn semaphore(permits: usize, waiting: usize) -> FairSemaphore<&'static str> {
    FairSemaphore::new(Limits::half_per_owner(permits, waiting))
}

/// Starts a request and polls it once, so that it holds its permit or is in the queue.
async fn request(
    semaphore: &FairSemaphore<&'static str>,
    owner: &'static str,
    priority: Priority,
) -> Requested {
    let semaphore = semaphore.clone();
    let mut request: Request = Box::pin(async move { semaphore.acquire(owner, priority).await });
    let acquired = poll(&mut request).await;
    Requested { request, acquired }
}

async fn normal(semaphore: &FairSemaphore<&'static str>, owner: &'static str) -> Requested {
    request(semaphore, owner, Priority::Normal).await
}

struct Requested {
    request: Request,
    acquired: Option<Acquired>,
}

impl Requested {
    /// Returns the permit or the error, or `None` while the request waits.
    async fn outcome(&mut self) -> Option<&mut Acquired> {
        if self.acquired.is_none() {
            self.acquired = poll(&mut self.request).await;
        }
        self.acquired.as_mut()
    }

    async fn has_permit(&mut self) -> bool {
        matches!(self.outcome().await, Some(Ok(_)))
    }

    async fn is_rejected(&mut self) -> bool {
        matches!(self.outcome().await, Some(Err(QueueFull)))
    }
}

async fn poll(request: &mut Request) -> Option<Acquired> {
    std::future::poll_fn(|context| {
        Poll::Ready(match request.as_mut().poll(context) {
            Poll::Ready(acquired) => Some(acquired),
            Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test]
async fn one_owner_holds_at_most_its_share() {
    let semaphore = semaphore(4, 100);
    let mut first: Vec<Requested> = Vec::new();
    for _ in 0..10 {
        first.push(normal(&semaphore, "flood").await);
    }
    let mut held = 0;
    for request in &mut first {
        held += usize::from(request.has_permit().await);
    }
    assert_eq!((held, semaphore.waiting()), (2, 8));
    assert_eq!((semaphore.permits(), semaphore.in_use()), (4, 2));
    assert!(normal(&semaphore, "other").await.has_permit().await);
    drop(first);
    assert_eq!((semaphore.waiting(), semaphore.in_use()), (0, 0));
}

#[tokio::test]
async fn single_permit_is_shared_among_owners() {
    let semaphore = semaphore(1, 100);
    let held = normal(&semaphore, "flood").await;
    let mut waiting = Vec::new();
    for owner in ["flood", "flood", "flood", "other"] {
        waiting.push(normal(&semaphore, owner).await);
    }
    drop(held);
    assert!(waiting[0].has_permit().await);
    drop(waiting.remove(0));
    // The other owner waits for one request of the flood, not for all of them.
    assert!(waiting[2].has_permit().await);
    assert!(!waiting[0].has_permit().await && !waiting[1].has_permit().await);
}

#[tokio::test]
async fn owners_are_served_in_turn_and_each_in_order() {
    let semaphore = semaphore(1, 100);
    let mut held = vec![normal(&semaphore, "a").await];
    let owners = ["a", "a", "a", "b", "b", "c"];
    let mut waiting: Vec<(usize, Requested)> = Vec::new();
    for (number, owner) in owners.into_iter().enumerate() {
        waiting.push((number, normal(&semaphore, owner).await));
    }
    let mut order = Vec::new();
    while !waiting.is_empty() {
        held.clear();
        for (number, request) in &mut waiting {
            if request.has_permit().await {
                order.push(*number);
            }
        }
        let served = order.last().copied();
        waiting.retain_mut(|(number, _)| Some(*number) != served);
    }
    assert_eq!(
        order
            .iter()
            .map(|number| owners[*number])
            .collect::<Vec<_>>(),
        ["a", "b", "c", "a", "b", "a"]
    );
    assert_eq!(order, [0, 3, 5, 1, 4, 2]);
}

#[tokio::test]
async fn urgent_requests_are_served_before_all_others() {
    let semaphore = semaphore(1, 1);
    let held = normal(&semaphore, "flood").await;
    let mut waiting = normal(&semaphore, "flood").await;
    let mut urgent = request(&semaphore, "lease", Priority::Urgent).await;
    let mut later = request(&semaphore, "lease", Priority::Urgent).await;
    drop(held);
    assert!(urgent.has_permit().await && !waiting.has_permit().await && !later.has_permit().await);
    drop(urgent);
    assert!(later.has_permit().await && !waiting.has_permit().await);
    drop(later);
    assert!(waiting.has_permit().await);
}

#[tokio::test]
async fn full_queue_rejects_only_the_owner_with_most_requests() {
    let semaphore = semaphore(1, 4);
    let _held = normal(&semaphore, "flood").await;
    let mut flood = Vec::new();
    for _ in 0..4 {
        flood.push(normal(&semaphore, "flood").await);
    }
    assert!(normal(&semaphore, "flood").await.is_rejected().await);
    let mut other = normal(&semaphore, "other").await;
    assert!(!other.is_rejected().await);
    assert!(
        flood[3].is_rejected().await,
        "the newest request of the longest queue must be rejected"
    );
    for request in &mut flood[..3] {
        assert!(request.outcome().await.is_none());
    }
    let mut second = normal(&semaphore, "other").await;
    assert!(!second.is_rejected().await && flood[2].is_rejected().await);
    assert!(
        normal(&semaphore, "other").await.is_rejected().await,
        "no other queue is longer"
    );
    assert_eq!(semaphore.waiting(), 4);
}

#[tokio::test]
async fn dropped_request_leaves_the_queue_and_frees_its_permit() {
    let semaphore = semaphore(1, 2);
    for _ in 0..100 {
        let held = normal(&semaphore, "a").await;
        let (waiting, granted) = (normal(&semaphore, "a").await, normal(&semaphore, "b").await);
        drop(waiting);
        drop(held);
        drop(granted); // after its permit was granted, before it was received
        let urgent = request(&semaphore, "lease", Priority::Urgent).await;
        let mut replaced = [normal(&semaphore, "a").await, normal(&semaphore, "a").await];
        let other = normal(&semaphore, "b").await;
        // One of these was replaced and is dropped before it is notified: it must not release a permit.
        drop(replaced);
        drop(other);
        drop(urgent);
        replaced = [normal(&semaphore, "a").await, normal(&semaphore, "b").await];
        assert!(
            replaced[0].has_permit().await && !replaced[1].has_permit().await,
            "only one permit exists"
        );
        drop(replaced);
    }
    assert_eq!(semaphore.waiting(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_permit_is_lost_or_added_under_contention() {
    let semaphore = FairSemaphore::new(Limits::half_per_owner(3, 50));
    let held = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut tasks = Vec::new();
    for number in 0..16_usize {
        let (semaphore, held) = (semaphore.clone(), held.clone());
        tasks.push(tokio::spawn(async move {
            for round in 0..300 {
                let priority = if round % 50 == 0 { Priority::Urgent } else { Priority::Normal };
                let mut request = Box::pin(semaphore.acquire(number % 5, priority));
                let permit = tokio::select! {
                    biased;
                    permit = &mut request => permit,
                    () = async { for _ in 0..(number + round) % 7 { tokio::task::yield_now().await } } => continue,
                };
                let Ok(permit) = permit else { continue };
                assert!(held.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 3);
                tokio::task::yield_now().await;
                held.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                drop(permit);
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let mut all = Vec::new();
    for owner in 0..3 {
        all.push(semaphore.acquire(owner, Priority::Normal).await.unwrap());
    }
    assert_eq!((all.len(), semaphore.waiting()), (3, 0));
}
