//! The client in front of replicas, while its open connections repeatedly go silent (new ones work) and responses are
//! damaged in transit. Nothing is created twice, and every call eventually succeeds.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use tollkey_client::{Auth, Client, Status};
use tollkey_store::{Backend, testing::backends};

use crate::support::App;

#[path = "../../../client/tests/it/proxy.rs"]
mod proxy;

use proxy::Proxy;

/// The number of parallel callers.
const CALLERS: usize = 4;
/// The number of keys that each of them creates.
const CREATIONS: usize = 12;
/// The connections go silent before every third creation of the first caller.
const SILENT_EVERY: usize = 3;
/// The number of damaged responses.
const DAMAGED: usize = 3;
/// The timeout of one attempt, which a silent connection uses up.
const ATTEMPT: Duration = Duration::from_secs(1);

/// Creates a key, and revokes it if `is_revoked`. Returns its name, the key and whether it is revoked.
async fn create(client: &Client, name: String, is_revoked: bool) -> (String, String, bool) {
    let keys = client.commerce().api_keys();
    let created = keys
        .create(&name)
        .await
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    if is_revoked {
        keys.revoke(&created.key_id)
            .await
            .unwrap_or_else(|error| panic!("revoke {name}: {error}"));
    }
    (name, created.api_key.expose().to_owned(), is_revoked)
}

#[actix_web::test]
async fn calls_survive_silent_connections_without_duplicate_keys() {
    for database in backends() {
        let replicas = if database.backend() == Backend::Postgres {
            3
        } else {
            1
        };
        let app = App::start(database, &[]).await;
        let mut others = Vec::new();
        for _ in 1..replicas {
            others.push(app.replica().await);
        }
        let mut servers = vec![app.running().address()];
        servers.extend(others.iter().map(|replica| replica.address()));
        let proxy = Proxy::to(&servers).await;
        let client = |url: String, credential: &str| {
            let client = Client::builder()
                .base_url(url)
                .auth(Auth::bearer(credential))
                .timeout(ATTEMPT);
            let pause = Duration::from_millis(20);
            client
                .max_retries(8)
                .backoff(pause, pause * 5)
                .build()
                .expect("a client")
        };
        let merchant = client(
            format!("http://{}", proxy.address),
            &app.management_token("acme"),
        );

        let callers = (0..CALLERS).map(|caller| {
            let (merchant, proxy) = (&merchant, &proxy);
            async move {
                let mut created = Vec::new();
                for number in 0..CREATIONS {
                    if caller == 0 && number % SILENT_EVERY == SILENT_EVERY - 1 {
                        proxy.silence();
                    }
                    created.push(
                        create(merchant, format!("{caller}-{number}"), number % 2 == 0).await,
                    );
                }
                created
            }
        });
        let mut created: Vec<_> = join_all(callers).await.into_iter().flatten().collect();
        for number in 0..DAMAGED {
            proxy.damage();
            created.push(create(&merchant, format!("damaged-{number}"), false).await);
        }

        // Every key exists once, in the expected state.
        let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let mut list = merchant.commerce().api_keys().list().items();
        while let Some(key) = list.next().await.transpose().expect("the list") {
            found
                .entry(key.name)
                .or_default()
                .push(key.status == Status::Revoked);
        }
        let expected: BTreeMap<_, _> = created
            .iter()
            .map(|(name, _, is_revoked)| (name.clone(), vec![*is_revoked]))
            .collect();
        assert_eq!(expected.len(), CALLERS * CREATIONS + DAMAGED);
        assert_eq!(found, expected);

        // Every replica verifies the key from the response, which may have been a replay.
        for server in &servers {
            let service = client(format!("http://{server}"), &app.service());
            for (name, text, is_revoked) in &created {
                let verdict = service.verify(text).await.expect("a verdict");
                assert_eq!(
                    verdict.is_valid(),
                    !is_revoked,
                    "{name}: {}",
                    verdict.code()
                );
            }
        }

        // The silent connections were closed, and the faults explain all connections that were opened.
        let silenced = CREATIONS / SILENT_EVERY;
        proxy.closed(silenced).await;
        assert!(
            proxy.opened() <= (silenced + 1) * 3 * CALLERS,
            "{} connections",
            proxy.opened()
        );
        drop(merchant);
        for replica in others {
            replica.stop().await;
        }
        app.stop().await;
    }
}
