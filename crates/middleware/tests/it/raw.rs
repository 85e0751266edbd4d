//! Raw requests that client libraries cannot send.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tollkey_core::{Family, IpList, Mode};
use tollkey_middleware::testing::TestKeys;

use crate::apps::Apps;

/// Sends a request line and headers to an application, and returns the status of the response.
async fn status(apps: &Apps, app: &str, line: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(apps.address(app))
        .await
        .expect("a connection");
    let request = format!("{line} HTTP/1.1\r\nhost: api\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response).await;
    let response = String::from_utf8_lossy(&response).into_owned();
    response.split(' ').nth(1).unwrap_or("nothing").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn unusual_requests_do_not_bypass_the_guard() {
    let keys = TestKeys::new();
    let shop = keys.add(Family::Publishable, Mode::Test, |_| {});
    let key = keys.add(Family::Commerce, Mode::Test, |_| {});
    let office = keys.add(Family::Commerce, Mode::Test, |key| {
        key.restrictions.allowed_ips = IpList::parse(["203.0.113.0/24"]).ok();
    });
    let apps = Apps::start(&keys.guard().await.expect("a guard"));
    let [shop, key, office] = [shop, key, office].map(|key| format!("x-api-key: {key}\r\n"));
    let and = |key: &str, more: &str| format!("{key}{more}\r\n");
    // The two statuses differ because axum routes by the path as sent and adds HEAD to GET routes, while
    // actix-web decodes the path first and adds no HEAD routes.
    for (line, headers, axum, actix) in [
        ("GET /v1/storefront/products", shop.clone(), "200", "200"),
        ("HEAD /v1/storefront/products", shop.clone(), "200", "405"),
        (
            "GET http://other/v1/storefront/products",
            shop.clone(),
            "200",
            "200",
        ),
        (
            "OPTIONS /v1/storefront/products",
            shop.clone(),
            "403",
            "403",
        ),
        ("get /v1/storefront/products", shop.clone(), "403", "403"),
        ("GET /v1/%73torefront/products", shop.clone(), "404", "403"),
        ("GET /v1//storefront/products", shop.clone(), "404", "403"),
        (
            "GET /any?/v1/storefront/products",
            shop.clone(),
            "403",
            "403",
        ),
        ("GET /any#/v1/storefront/products", shop, "403", "403"),
        ("HEAD /any", String::new(), "401", "401"),
        ("OPTIONS /any", String::new(), "401", "401"),
        ("TRACE /any", String::new(), "401", "401"),
        ("DELETE /api/v1/links", String::new(), "401", "401"),
        ("OPTIONS *", String::new(), "404", "404"),
        ("GET /any", and(&key, "x-api-key:"), "200", "200"),
        ("GET /any", and(&key, "authorization: Bearer"), "200", "200"),
        ("GET /any", "x-api-key:\r\n".to_owned(), "401", "401"),
        ("GET /optional", "x-api-key:\r\n".to_owned(), "200", "200"),
        (
            "GET /optional",
            "authorization: Bearer\r\n".to_owned(),
            "200",
            "200",
        ),
        (
            "GET /optional",
            "authorization: Basic YTpi\r\n".to_owned(),
            "401",
            "401",
        ),
        ("GET /any", key.replace('-', "_"), "401", "401"),
        (
            "GET /any",
            and(&key, "x-merchant-id: m\u{e9}"),
            "403",
            "403",
        ),
        (
            "GET /any",
            and(&key, "x-merchant-id:\r\nx-merchant-id: m1"),
            "403",
            "403",
        ),
        ("GET /of/m%31/tokens", key.clone(), "403", "403"),
        ("GET /of/m2%2f..%2fm1/tokens", key.clone(), "403", "403"),
        ("GET /%6ff/m2/tokens", key, "404", "403"),
        (
            "GET /any",
            and(&office, "x-forwarded-for: 203.0.113.1"),
            "200",
            "200",
        ),
        (
            "GET /any",
            and(&office, "x-forwarded-for: ::ffff:203.0.113.1"),
            "200",
            "200",
        ),
        (
            "GET /any",
            and(&office, "x-forwarded-for: 203.0.113.1\r\nx-forwarded-for:"),
            "403",
            "403",
        ),
        (
            "GET /any",
            and(&office, "forwarded: for=203.0.113.1"),
            "403",
            "403",
        ),
    ] {
        let statuses = (
            status(&apps, "axum", line, &headers).await,
            status(&apps, "actix", line, &headers).await,
        );
        assert_eq!(
            statuses,
            (axum.to_owned(), actix.to_owned()),
            "{line} {headers:?}"
        );
    }
}
