//! Lists, page by page and item by item.

use futures_util::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use tollkey_client::{ErrorKind, Listing, commerce};
use wiremock::{Request, ResponseTemplate};

use crate::{
    fixtures,
    support::{REQUEST_ID, Server, expect_error, json_response, nothing, problem, target},
};

/// A commerce key with this ID.
fn key(id: impl Into<String>) -> Value {
    let mut key = fixtures::commerce_key();
    key["key_id"] = json!(id.into());
    key
}

/// A page of commerce keys with this `Link` header.
fn page_with_link(ids: &[&str], link: &str) -> ResponseTemplate {
    let keys: Vec<_> = ids.iter().copied().map(key).collect();
    json_response(200, &json!(keys)).insert_header("link", link)
}

fn last_page(ids: &[&str]) -> ResponseTemplate {
    json_response(200, &ids.iter().copied().map(key).collect())
}

fn next_link(cursor: &str) -> String {
    format!("</api/v1/api-keys?scope=commerce&limit=2&cursor={cursor}>; rel=\"next\"")
}

async fn targets(server: &Server) -> Vec<String> {
    server.requests().await.iter().map(target).collect()
}

async fn ids(mut listing: Listing<commerce::Key>) -> Vec<String> {
    let mut ids = Vec::new();
    while let Some(key) = listing.next().await {
        ids.push(key.unwrap().key_id);
    }
    assert!(listing.next().await.is_none(), "the list has ended");
    ids
}

#[tokio::test]
async fn items_span_pages_with_the_same_parameters() {
    let responses = || {
        [
            page_with_link(&["a", "b"], &next_link("c%2B1")),
            page_with_link(&["c", "d"], &next_link("c2")),
            last_page(&["e"]),
        ]
    };
    let expected = [
        "/api/v1/api-keys?account=acme&scope=commerce&limit=2",
        "/api/v1/api-keys?account=acme&scope=commerce&limit=2&cursor=c%2B1",
        "/api/v1/api-keys?account=acme&scope=commerce&limit=2&cursor=c2",
    ];
    let server = Server::answering(responses()).await;
    let client = server.client().for_account("acme");
    assert_eq!(
        ids(client.commerce().api_keys().list().limit(2).items()).await,
        ["a", "b", "c", "d", "e"]
    );
    assert_eq!(targets(&server).await, expected);

    let server = Server::answering(responses()).await;
    let client = server.client().for_account("acme");
    let pages: Vec<_> = client
        .commerce()
        .api_keys()
        .list()
        .limit(2)
        .pages()
        .try_collect()
        .await
        .unwrap();
    assert_eq!(
        pages
            .iter()
            .map(|page| page.items.len())
            .collect::<Vec<_>>(),
        [2, 2, 1]
    );
    assert_eq!(pages[0].next_cursor.as_deref(), Some("c+1"));
    assert_eq!(pages[2].next_cursor, None);
    assert_eq!(targets(&server).await, expected);
}

#[tokio::test]
async fn list_starts_at_a_cursor() {
    let server =
        Server::answering([page_with_link(&["c"], &next_link("c3")), last_page(&["d"])]).await;
    let listed = ids(server
        .client()
        .commerce()
        .api_keys()
        .list()
        .cursor("c2")
        .items())
    .await;
    assert_eq!(listed, ["c", "d"]);
    let expected = [
        "/api/v1/api-keys?scope=commerce&cursor=c2",
        "/api/v1/api-keys?scope=commerce&cursor=c3",
    ];
    assert_eq!(targets(&server).await, expected);
}

#[tokio::test]
async fn page_contains_the_next_cursor() {
    let server = Server::answering([
        page_with_link(&["a", "b"], &next_link("c1")),
        last_page(&[]),
    ])
    .await;
    let list = server.client().commerce().api_keys().list();
    let page = list.clone().await.unwrap();
    assert_eq!(
        (&page)
            .into_iter()
            .map(|key| key.key_id.as_str())
            .collect::<Vec<_>>(),
        ["a", "b"]
    );
    let cursor = page.next_cursor.clone().expect("a next page");
    assert_eq!(page.into_iter().count(), 2);
    let page = list.cursor(cursor).await.unwrap();
    assert!(page.items.is_empty() && page.next_cursor.is_none());
}

#[tokio::test]
async fn pages_are_fetched_only_when_read() {
    let server = Server::answering([
        page_with_link(&["a", "b"], &next_link("c1")),
        last_page(&["c", "d"]),
    ])
    .await;
    let mut items = server.client().commerce().api_keys().list().items();
    assert!(server.requests().await.is_empty());
    items.next().await.unwrap().unwrap();
    items.next().await.unwrap().unwrap();
    assert_eq!(server.requests().await.len(), 1);
    items.next().await.unwrap().unwrap();
    assert_eq!(server.requests().await.len(), 2);
}

#[tokio::test]
async fn collect_up_to_stops_at_the_limit() {
    let rows: [(usize, &[&str], usize); 5] = [
        (0, &[], 0),
        (1, &["a"], 1),
        (2, &["a", "b"], 1),
        (3, &["a", "b", "c"], 2),
        (99, &["a", "b", "c", "d"], 2),
    ];
    for (most, expected, requests) in rows {
        let server = Server::answering([
            page_with_link(&["a", "b"], &next_link("c1")),
            last_page(&["c", "d"]),
        ])
        .await;
        let keys = server
            .client()
            .commerce()
            .api_keys()
            .list()
            .items()
            .collect_up_to(most)
            .await
            .unwrap();
        assert_eq!(
            keys.iter()
                .map(|key| key.key_id.as_str())
                .collect::<Vec<_>>(),
            expected
        );
        assert_eq!(server.requests().await.len(), requests, "{most}");
    }
}

#[tokio::test]
async fn listing_is_a_stream() {
    let server = Server::answering([
        page_with_link(&["a", "b"], &next_link("c1")),
        last_page(&["c"]),
    ])
    .await;
    let items = server.client().commerce().api_keys().list().items();
    let ids: Vec<_> = items
        .map_ok(|key| key.key_id)
        .take(3)
        .try_collect()
        .await
        .unwrap();
    assert_eq!(ids, ["a", "b", "c"]);
}

#[tokio::test]
async fn empty_page_with_a_cursor_does_not_end_the_list() {
    let server = Server::answering([
        page_with_link(&[], &next_link("c1")),
        page_with_link(&[], &next_link("c2")),
        last_page(&["a"]),
    ])
    .await;
    assert_eq!(
        ids(server.client().commerce().api_keys().list().items()).await,
        ["a"]
    );
    let server = Server::answering([last_page(&[])]).await;
    assert!(
        ids(server.client().commerce().api_keys().list().items())
            .await
            .is_empty()
    );
    let server = Server::answering([last_page(&[])]).await;
    let pages = server
        .client()
        .commerce()
        .api_keys()
        .list()
        .pages()
        .collect_up_to(9)
        .await
        .unwrap();
    assert_eq!(pages.len(), 1);
}

#[tokio::test]
async fn error_ends_the_list() {
    let server = Server::answering([
        page_with_link(&["a"], &next_link("c1")),
        problem(401, "invalid_token", "the token has expired"),
    ])
    .await;
    let mut items = server.client().commerce().api_keys().list().items();
    assert_eq!(items.next().await.unwrap().unwrap().key_id, "a");
    let error = expect_error(items.next().await.unwrap());
    assert!(error.is_unauthorized());
    assert!(items.next().await.is_none() && items.next().await.is_none());
    assert_eq!(server.requests().await.len(), 2);

    let server = Server::answering([
        page_with_link(&["a"], &next_link("c1")),
        problem(401, "invalid_token", "the token has expired"),
    ])
    .await;
    let collected = server
        .client()
        .commerce()
        .api_keys()
        .list()
        .items()
        .collect_up_to(9)
        .await;
    assert!(expect_error(collected).is_unauthorized());
}

#[tokio::test]
async fn retries_are_counted_per_page() {
    let unavailable = || problem(503, "unavailable", "temporarily unavailable");
    let responses = [
        unavailable(),
        unavailable(),
        page_with_link(&["a"], &next_link("c1")),
        unavailable(),
        unavailable(),
        last_page(&["b"]),
    ];
    let server = Server::answering(responses).await;
    assert_eq!(
        ids(server.persistent().commerce().api_keys().list().items()).await,
        ["a", "b"]
    );
}

#[tokio::test]
async fn repeated_cursor_is_an_error() {
    // The second page names itself as the next.
    let server = Server::responding(page_with_link(&["a"], &next_link("c1"))).await;
    let mut items = server.client().commerce().api_keys().list().items();
    assert_eq!(items.next().await.unwrap().unwrap().key_id, "a");
    let error = expect_error(items.next().await.unwrap());
    assert_eq!(
        (error.kind(), error.status()),
        (ErrorKind::Unreadable, Some(200))
    );
    let why = "200: the next cursor is the cursor of this page";
    assert_eq!(error.to_string(), format!("GET /api/v1/api-keys: {why}"));
    assert!(items.next().await.is_none());
    assert_eq!(server.requests().await.len(), 2);

    let page = fixtures::list_envelope(&json!([fixtures::account_key()]), Some("c1"));
    let server = Server::responding(json_response(200, &page)).await;
    let error = expect_error(
        server
            .client()
            .account()
            .api_keys()
            .list()
            .items()
            .collect_up_to(99)
            .await,
    );
    assert_eq!(error.kind(), ErrorKind::Unreadable);
    assert_eq!(server.requests().await.len(), 2);
}

#[tokio::test]
async fn next_page_uses_the_same_server_and_parameters() {
    let elsewhere = Server::responding(nothing()).await;
    for host in [
        elsewhere.url(),
        format!("//{}", elsewhere.url().trim_start_matches("http://")),
    ] {
        let link =
            format!("<{host}/api/v1/api-keys?account=other&limit=9&cursor=c1>; rel=\"next\"");
        let server = Server::answering([page_with_link(&["a"], &link), last_page(&["b"])]).await;
        assert_eq!(
            ids(server.client().commerce().api_keys().list().items()).await,
            ["a", "b"]
        );
        let expected = [
            "/api/v1/api-keys?scope=commerce",
            "/api/v1/api-keys?scope=commerce&cursor=c1",
        ];
        assert_eq!(targets(&server).await, expected);
    }
    assert!(elsewhere.requests().await.is_empty());
}

#[tokio::test]
async fn base_url_may_have_a_path() {
    let server =
        Server::answering([page_with_link(&["a"], &next_link("c1")), last_page(&["b"])]).await;
    let client = tollkey_client::Client::new(format!("{}/keys/of/eu/", server.url())).unwrap();
    assert_eq!(
        ids(client.commerce().api_keys().list().items()).await,
        ["a", "b"]
    );
    let expected = [
        "/keys/of/eu/api/v1/api-keys?scope=commerce",
        "/keys/of/eu/api/v1/api-keys?scope=commerce&cursor=c1",
    ];
    assert_eq!(targets(&server).await, expected);
}

/// The cursors of `Link` headers (RFC 8288).
#[tokio::test]
async fn next_link_is_parsed() {
    let rows: [(&[&str], Option<&str>); 14] = [
        (&["</api/v1/api-keys?cursor=c1>; rel=\"next\""], Some("c1")),
        (&["</api/v1/api-keys?cursor=c1>;rel=next"], Some("c1")),
        (
            &["</api/v1/api-keys?cursor=c1>; title=\"more\"; rel=\"next\""],
            Some("c1"),
        ),
        (
            &["</a?cursor=p>; rel=\"prev\", </a?cursor=c1>; rel=\"next\""],
            Some("c1"),
        ),
        (
            &[
                "</a?cursor=p>; rel=\"prev\"",
                "</a?cursor=c1>; rel=\"next\"",
            ],
            Some("c1"),
        ),
        (&["<?cursor=c1>; rel=\"next\""], Some("c1")),
        (
            &["</a?limit=2&cursor=%C3%A9%26%3D+x>; rel=\"next\""],
            Some("é&= x"),
        ),
        (&["</a?cursor=c1>; rel=\"next last\""], Some("c1")),
        (&["</a?cursor=c1>; REL=\"Next\""], Some("c1")),
        (&["</a?cursor=p>; rel=\"prev\""], None),
        (&["</a?cursor=c1>; rel=\"nextish\""], None),
        (&["</style.css>; rel=preload; as=style"], None),
        (&[""], None),
        (&["nonsense"], None),
    ];
    for (links, cursor) in rows {
        let response = links
            .iter()
            .fold(json_response(200, &json!([])), |response, link| {
                response.append_header("link", *link)
            });
        let server = Server::responding(response).await;
        let page = server.client().audit_log().list().await.unwrap();
        assert_eq!(page.next_cursor.as_deref(), cursor, "{links:?}");
    }
}

#[tokio::test]
async fn next_link_without_a_cursor_is_an_error() {
    for link in [
        "</api/v1/audit-log?limit=2>; rel=\"next\"",
        "</api/v1/audit-log>; rel=\"next\"",
    ] {
        let server =
            Server::responding(json_response(200, &json!([])).insert_header("link", link)).await;
        let error = expect_error(server.client().audit_log().list().await);
        assert_eq!(error.kind(), ErrorKind::Unreadable);
        let why = "200: the list's next link has no cursor";
        assert_eq!(
            error.to_string(),
            format!("GET /api/v1/audit-log: {why} ({REQUEST_ID})")
        );
    }
}

#[tokio::test]
async fn audit_log_filters_apply_to_every_page() {
    let link = "</api/v1/audit-log?cursor=c1>; rel=\"next\"";
    let first = json_response(200, &json!([fixtures::audit_entry()])).insert_header("link", link);
    let server =
        Server::answering([first, json_response(200, &json!([fixtures::audit_entry()]))]).await;
    let from: tollkey_client::Timestamp = fixtures::NOON_TEXT.parse().unwrap();
    let list = server
        .client()
        .audit_log()
        .list()
        .limit(1)
        .action("api_key.revoked")
        .target_id("key")
        .actor_id("user_7");
    let entries = list
        .since(from)
        .until(from)
        .items()
        .collect_up_to(9)
        .await
        .unwrap();
    assert_eq!(entries.len(), 2);
    let rest = "action=api_key.revoked&target_id=key&actor_id=user_7\
                &since=2026-02-23T12%3A00%3A00Z&until=2026-02-23T12%3A00%3A00Z";
    let expected = [
        format!("/api/v1/audit-log?limit=1&{rest}"),
        format!("/api/v1/audit-log?limit=1&cursor=c1&{rest}"),
    ];
    assert_eq!(targets(&server).await, expected);
}

#[tokio::test]
async fn account_surface_takes_cursors_from_the_envelope() {
    let page = |cursor| {
        json_response(
            200,
            &fixtures::list_envelope(&json!([fixtures::account_key()]), cursor),
        )
    };
    // The account surface does not use `Link`.
    let first = page(Some("c1"))
        .insert_header("link", "</api/v1/account/api-keys?cursor=no>; rel=\"next\"");
    let server = Server::answering([first, page(Some("c2")), page(None)]).await;
    let keys = server
        .client()
        .account()
        .api_keys()
        .list()
        .limit(1)
        .items()
        .collect_up_to(9)
        .await
        .unwrap();
    assert_eq!(keys.len(), 3);
    let expected = [
        "/api/v1/account/api-keys?limit=1",
        "/api/v1/account/api-keys?limit=1&cursor=c1",
        "/api/v1/account/api-keys?limit=1&cursor=c2",
    ];
    assert_eq!(targets(&server).await, expected);

    let page = |cursor| {
        json_response(
            200,
            &fixtures::list_envelope(&json!([fixtures::account_audit_entry()]), cursor),
        )
    };
    let server = Server::answering([page(Some("c1")), page(None)]).await;
    let list = server
        .client()
        .account()
        .audit_log()
        .list()
        .limit(1)
        .action("api_key.revoked");
    assert_eq!(list.items().collect_up_to(9).await.unwrap().len(), 2);
    let expected = [
        "/api/v1/account/audit-log?limit=1&action=api_key.revoked",
        "/api/v1/account/audit-log?limit=1&cursor=c1&action=api_key.revoked",
    ];
    assert_eq!(targets(&server).await, expected);
}

/// Responds with numbered pages of two items each.
fn numbered(item: Value, pages: u64) -> impl Fn(&Request) -> ResponseTemplate + Send + Sync {
    move |request: &Request| {
        let page = request.url.query_pairs().find(|(name, _)| name == "page");
        let page = page.map_or(1, |(_, page)| page.parse::<u64>().unwrap());
        let items = if page <= pages {
            vec![item.clone(); 2]
        } else {
            Vec::new()
        };
        let body = json!({
            "items": items, "page": page, "limit": 2, "totalItems": pages * 2, "totalPages": pages,
            "hasPreviousPage": page > 1, "hasNextPage": page < pages,
        });
        json_response(200, &body)
    }
}

#[tokio::test]
async fn numbered_pages_are_read_with_the_maximum_page_size() {
    let server = Server::responding(numbered(fixtures::application(), 3)).await;
    let all = server
        .client()
        .applications()
        .list()
        .include_api_keys()
        .items()
        .collect_up_to(99)
        .await
        .unwrap();
    assert_eq!(all.len(), 6);
    let expected = [
        "/api/v1/applications?include=apiKeys&limit=100",
        "/api/v1/applications?include=apiKeys&page=2&limit=100",
        "/api/v1/applications?include=apiKeys&page=3&limit=100",
    ];
    assert_eq!(targets(&server).await, expected);

    let server = Server::responding(numbered(fixtures::application_key(), 2)).await;
    let client = server.client().for_account("acme");
    let keys = client
        .applications()
        .api_keys("app")
        .list()
        .limit(2)
        .items()
        .collect_up_to(99)
        .await
        .unwrap();
    assert_eq!(keys.len(), 4);
    let expected = [
        "/api/v1/applications/app/api-keys?account=acme&limit=2",
        "/api/v1/applications/app/api-keys?account=acme&page=2&limit=2",
    ];
    assert_eq!(targets(&server).await, expected);
}

#[tokio::test]
async fn numbered_list_starts_at_a_page() {
    let server = Server::responding(numbered(fixtures::application(), 3)).await;
    let pages = server
        .client()
        .applications()
        .list()
        .page(2)
        .limit(2)
        .pages()
        .collect_up_to(99)
        .await
        .unwrap();
    assert_eq!(
        pages.iter().map(|page| page.page).collect::<Vec<_>>(),
        [2, 3]
    );
    let expected = [
        "/api/v1/applications?page=2&limit=2",
        "/api/v1/applications?page=3&limit=2",
    ];
    assert_eq!(targets(&server).await, expected);
}

#[tokio::test]
async fn empty_numbered_page_ends_the_list() {
    let server = Server::responding(|request: &Request| {
        let items = if target(request).contains("page=2") {
            json!([])
        } else {
            json!([fixtures::application()])
        };
        let mut page = fixtures::numbered_page(&items);
        page["page"] = json!(if target(request).contains("page=2") {
            2
        } else {
            1
        });
        page["hasNextPage"] = json!(true);
        json_response(200, &page)
    })
    .await;
    assert_eq!(
        server
            .client()
            .applications()
            .list()
            .items()
            .collect_up_to(99)
            .await
            .unwrap()
            .len(),
        1
    );
    assert_eq!(server.requests().await.len(), 2);
}

#[tokio::test]
async fn another_numbered_page_than_requested_is_an_error() {
    // A cache that ignores the query: each page is the first one.
    let mut page = fixtures::numbered_page(&json!([fixtures::application()]));
    (page["page"], page["hasNextPage"]) = (json!(1), json!(true));
    let server = Server::responding(json_response(200, &page)).await;
    let error = expect_error(
        server
            .client()
            .applications()
            .list()
            .items()
            .collect_up_to(1000)
            .await,
    );
    assert_eq!(error.kind(), ErrorKind::Unreadable);
    assert_eq!(server.requests().await.len(), 2);

    let mut page = fixtures::numbered_page(&json!([fixtures::application_key()]));
    (page["page"], page["hasNextPage"]) = (json!(1), json!(true));
    let server = Server::responding(json_response(200, &page)).await;
    let keys = server
        .client()
        .applications()
        .api_keys("app")
        .list()
        .page(7)
        .items();
    assert_eq!(
        expect_error(keys.collect_up_to(1000).await).kind(),
        ErrorKind::Unreadable
    );
    assert_eq!(server.requests().await.len(), 1);
}

#[tokio::test]
async fn listing_moves_into_a_task() {
    let server =
        Server::answering([page_with_link(&["a"], &next_link("c1")), last_page(&["b"])]).await;
    let items = {
        let client = server.client();
        client.commerce().api_keys().list().items()
    };
    assert_eq!(format!("{items:?}"), "Listing");
    let items = items.boxed();
    let count = tokio::spawn(async move { items.count().await })
        .await
        .unwrap();
    assert_eq!(count, 2);
}
